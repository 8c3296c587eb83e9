"""The learners: A3C and the processes under it; the player that plays what was learned."""

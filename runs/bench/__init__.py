"""Measurements of speed and memory, for ``neurocoder bench``."""

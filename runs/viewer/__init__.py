"""The page on which recorded episodes are watched, and the small server behind it."""

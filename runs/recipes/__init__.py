"""Recipes: TOML files that set what differs from the defaults. ``neurocoder list recipes`` shows them."""

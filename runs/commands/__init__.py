"""The commands, one module each; ``neurocoder.runs.cli`` imports them when they are called."""

"""Episodes that were recorded: their files, how they are made, checked and shown."""

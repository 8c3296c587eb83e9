"""Names a run, launches it, keeps it and shows it: command line, configuration, checkpoints, trackers."""

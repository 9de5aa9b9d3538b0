"""What a run leaves: its folder, checkpoints, results, trackers and uploads."""

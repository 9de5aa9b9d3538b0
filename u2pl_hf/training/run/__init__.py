"""What a run leaves and tells: its folder, checkpoints, results, trackers and uploads; and what ends it early."""

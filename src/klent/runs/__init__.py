"""One run: its loop, its folder, checkpoints, record, trackers and console."""

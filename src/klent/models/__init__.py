"""Models on disk: find, pull, load, save, merge."""

"""Files that survive a crash: atomic writes, whole folders, JSON Lines."""

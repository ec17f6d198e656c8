"""The pure update: objective, selection, and the optimizer steps of one batch."""

"""Runs that exist, of any recipe, drawn over one another on one page."""

STYLES = [(role, mark) for mark in ("line", "dash") for role in ("reward", "entropy", "ink", "down", "tone3")]
"""Colour and mark of each run; more runs than these cannot be told apart."""

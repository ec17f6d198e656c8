"""Runs that exist, of any recipe, drawn over one another on one page."""

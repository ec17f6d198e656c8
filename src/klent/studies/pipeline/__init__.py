"""Several stages from one file, each a run that may start where another ended, judged alike, on one page."""

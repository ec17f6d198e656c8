"""Many runs, one page: comparisons, controls, rankings."""

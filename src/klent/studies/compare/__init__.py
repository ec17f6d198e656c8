"""Methods side by side: same data, same budget, several seeds, one page that says which differences are real.

plan (which runs) -> run (train, measure) -> results (read back) -> statistics -> figures, page
"""

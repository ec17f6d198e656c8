"""Methods beside one another: same data, same budget, several seeds, one page that says what differs.

plan (which runs) -> run (train, measure) -> results (read back) -> statistics -> page
"""

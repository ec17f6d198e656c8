"""Second opinions: the same quantities in NumPy float64, token by token, written from the papers.

Nothing here imports klent or torch, and nothing is shared with them, so agreement means something.
"""

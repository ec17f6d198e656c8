"""Seeds as functions of place and use alone: a resumed run needs no memory of what was drawn before."""

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed for one use at one place, below 2^63; differently named uses are independent."""
    text = ":".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

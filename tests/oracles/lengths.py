"""A mean over tokens or sequences against a sum, in a language of one or two tokens, listed by hand.

The first token is a stop token or not; after one that is not comes a second. The policy has three logits for each
of its two prefixes, and k1 is paid as a reward to go.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROWS = [(0,), *((first, second) for first in (1, 2) for second in range(3))]


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gradients(logits: Array, reference: Array) -> tuple[Array, Array]:
    """Probability of each row, and the gradient of its loss -Σₜ Gₜ·logpₜ in the logits ``[3, 3]``, ``[7, 9]``."""
    p, q = softmax(logits), softmax(reference)
    chances, found = [], []
    for row in ROWS:
        prefixes = [0, *row[:-1]]  # the second token's prefix is the first token: 1 or 2
        gaps = [np.log(p[c, t] / q[c, t]) for c, t in zip(prefixes, row, strict=True)]
        total = np.zeros_like(logits)
        for place, (c, t) in enumerate(zip(prefixes, row, strict=True)):
            score = -p[c].copy()
            score[t] += 1
            total[c] += sum(gaps[place:]) * score
        chances.append(np.prod([p[c, t] for c, t in zip(prefixes, row, strict=True)]))
        found.append(total.ravel())
    return np.array(chances), np.array(found)


def mean(over: str, chances: Array, found: Array, *, size: int = 1) -> Array:
    """Expected gradient of a batch of ``size``, reduced over ``tokens``, ``sequences`` or a ``constant`` (size)."""
    lengths = np.array([len(row) for row in ROWS])
    total = np.zeros(found.shape[1])
    for batch in itertools.product(range(len(ROWS)), repeat=size):
        rows = list(batch)
        chance = chances[rows].prod()
        if over == "sequences":
            total += chance * (found[rows] / lengths[rows, None]).mean(axis=0)
        else:
            divisor = lengths[rows].sum() if over == "tokens" else size
            total += chance * found[rows].sum(axis=0) / divisor
    return total


def unexplained(one: Array, other: Array) -> float:
    """The share of a vector that no multiple of another explains."""
    return float(np.linalg.norm(one - (one @ other) / (other @ other) * other) / np.linalg.norm(one))

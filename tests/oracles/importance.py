"""Importance weights, one token at a time."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def weights(old: Array, gen: Array, mask: Mask, ratio: str, low: float, high: float, outside: str) -> Array:
    """Ratio of the probabilities, of the token or multiplied over its sequence, held to its bounds."""
    answer = np.zeros(old.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        tokens = np.nonzero(mask[i])[0] if ratio == "sequence" else [t]
        value = math.prod(math.exp(old[i, s]) / math.exp(gen[i, s]) for s in tokens)
        if outside == "truncate":
            answer[i, t] = min(max(value, low), high)
        elif low <= value <= high:
            answer[i, t] = value
    return answer


def normalised(weight: Array, mask: Mask, ratio: str) -> Array:
    """Divided by the mean over tokens, or over sequences (whose tokens all have one weight)."""
    if ratio == "token":
        return weight / np.mean(weight[mask])
    firsts = [weight[i, np.nonzero(mask[i])[0][0]] for i in range(len(mask)) if mask[i].any()]
    return weight / np.mean(firsts)

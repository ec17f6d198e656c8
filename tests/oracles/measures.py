"""Entropy, cross-entropy and KL from probabilities, as the definitions have them."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def entropy(p: Array, base: float) -> float:
    """Σ p log(1/p), with 0 log 0 = 0."""
    return sum(a * math.log(1 / a, base) for a in p.tolist() if a > 0)


def cross_entropy(p: Array, q: Array, base: float) -> float:
    """Σ p log(1/q), with 0 log 0 = 0."""
    return sum(a * math.log(1 / b, base) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


def kl(p: Array, q: Array, base: float) -> float:
    """Σ p log(p/q), with 0 log 0 = 0."""
    return sum(a * math.log(a / b, base) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


def softmax(logits: Array) -> Array:
    weights = np.exp(logits)
    return weights / weights.sum()


def one_sample_gradient(p: Array, action: int, advantage: float) -> Array:
    """Of -A log p(action) in the logits: A (p(k) - [k = action])."""
    return np.array([advantage * (p[k] - (k == action)) for k in range(len(p))])

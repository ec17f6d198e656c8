"""KL divergence: estimators (joschu.net/blog/kl-approx.html), the penalty's table of gradients, full sums."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def estimate(policy: float, reference: float, estimator: str) -> float:
    """k1, k2 or k3 of one sample from its two probabilities (not log-probabilities)."""
    ratio = reference / policy
    return {"k1": -math.log(ratio), "k2": math.log(ratio) ** 2 / 2, "k3": (ratio - 1) - math.log(ratio)}[
        estimator
    ]


def penalty(policy: float, reference: float, sampler: float, divergence: str) -> tuple[float, float]:
    """(value, dvalue/dlogp) of the divergence's integrand for one token, importance weighted.

    Written with probabilities: reverse is Σ p log(p/q) - p + q, forward Σ q log(q/p) - q + p, each term over
    the sampler's probability; d/dlogp is p d/dp.
    """
    p, q, m = policy, reference, sampler
    if divergence == "reverse":
        return (p * math.log(p / q) - p + q) / m, p * math.log(p / q) / m
    return (q * math.log(q / p) - q + p) / m, (p - q) / m


def categorical(p: Array, q: Array) -> float:
    """Σ p log(p/q) from probabilities, with 0 log 0 = 0."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

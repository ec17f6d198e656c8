"""Distillation from one sampled token, by hand: probabilities, no logarithms of them kept."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def slope(policy: float, old: float, target: float, mean: float, baseline: str) -> float:
    """dL/dlogp of a token from its probabilities, and the divergence's mean after its prefix."""
    worse = math.log(old / target) - (mean if baseline == "exact" else 0.0)
    return policy / old * worse


def gradient_variance(p: Array, t: Array, baseline: float) -> float:
    """Summed over logits: variance of (log p/t - baseline)·∇log p over tokens of p, after one prefix."""
    score = np.eye(len(p)) - p
    each = (np.log(p / t) - baseline)[:, None] * score
    mean = p @ each
    return float(p @ (each**2).sum(axis=1) - mean @ mean)

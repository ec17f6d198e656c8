"""The entropy-shaped advantage of arXiv:2506.14758 and the entropy-ratio clipping of arXiv:2512.05591."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def clipped(log_ratio: float, advantage: float, low: float, high: float) -> tuple[float, float]:
    """(loss, slope) of PPO's clipped surrogate for one token."""
    ratio = math.exp(log_ratio)
    bounded = min(max(ratio, 1 - low), 1 + high)
    free = ratio * advantage <= bounded * advantage
    return -min(ratio * advantage, bounded * advantage), -ratio * advantage if free else 0.0


def entropy_shaped(
    logp: Array,
    old: Array,
    entropy: Array,
    advantage: Array,
    mask: Mask,
    alpha: float,
    kappa: float,
    low: float,
    high: float,
) -> tuple[Array, Array]:
    """(loss, dloss/dlogp)."""
    loss, slope = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        a = advantage[i, t]
        shaped = a + min(alpha * entropy[i, t], abs(a) / kappa)
        loss[i, t], slope[i, t] = clipped(logp[i, t] - old[i, t], shaped, low, high)
    return loss, slope


def entropy_ratio_clip(
    logp: Array,
    old: Array,
    entropy: Array,
    entropy_old: Array,
    advantage: Array,
    mask: Mask,
    low: float,
    high: float,
    clip: tuple[float, float],
) -> tuple[Array, Array]:
    """(loss, dloss/dlogp)."""
    loss, slope = np.zeros(mask.shape), np.zeros(mask.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        if 1 - low <= entropy[i, t] / entropy_old[i, t] <= 1 + high:
            loss[i, t], slope[i, t] = clipped(logp[i, t] - old[i, t], advantage[i, t], *clip)
    return loss, slope

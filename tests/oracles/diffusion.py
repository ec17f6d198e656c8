"""Policy gradients for denoising steps, step by step, with the derivative in the mean."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def logp(x: Array, mean: Array, std: Array) -> float:
    """Log-density of one step."""
    return sum(
        -((a - m) ** 2) / (2 * s * s) - math.log(s) - math.log(2 * math.pi) / 2
        for a, m, s in zip(x, mean, std, strict=True)
    )


def ddpo(
    x: Array, mean: Array, std: Array, old: Array, advantage: Array, mask: Mask, low: float, high: float
) -> tuple[Array, Array]:
    """(loss, dloss/dmean) of arXiv:2305.13301's importance-sampled form with PPO's clip."""
    loss, slope = np.zeros(old.shape), np.zeros(x.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        ratio, a = math.exp(logp(x[i, t], mean[i, t], std[i, t]) - old[i, t]), advantage[i, t]
        clipped = min(max(ratio, 1 - low), 1 + high)
        loss[i, t] = max(-ratio * a, -clipped * a)
        if -ratio * a >= -clipped * a:
            slope[i, t] = -ratio * a * (x[i, t] - mean[i, t]) / std[i, t] ** 2
    return loss, slope


def dpok(
    x: Array, mean: Array, ref: Array, std: Array, advantage: Array, mask: Mask, coef: float
) -> tuple[Array, Array]:
    """(loss, dloss/dmean) of arXiv:2305.16381 with the KL of each step."""
    loss, slope = np.zeros(mask.shape), np.zeros(x.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        kl = sum((m - r) ** 2 / (2 * s * s) for m, r, s in zip(mean[i, t], ref[i, t], std[i, t], strict=True))
        loss[i, t] = -advantage[i, t] * logp(x[i, t], mean[i, t], std[i, t]) + coef * kl
        pull = coef * (mean[i, t] - ref[i, t]) - advantage[i, t] * (x[i, t] - mean[i, t])
        slope[i, t] = pull / std[i, t] ** 2
    return loss, slope

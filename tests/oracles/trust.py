"""Trust regions, one token at a time, from probabilities. Off the mask the answer is 0."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def dppo(
    logp: Array,
    gen: Array,
    advantage: Array,
    mask: Mask,
    distance: Array | None,
    threshold: float,
    top: float,
) -> Array:
    """-dloss/dlogp of DPPO (arXiv:2602.04879), the sampled token's |p - q| or a distance that is given."""
    push = np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        p, q, a = math.exp(logp[i, t]), math.exp(gen[i, t]), advantage[i, t]
        far = (abs(p - q) if distance is None else distance[i, t]) > threshold
        if far and ((a > 0 and p > q) or (a < 0 and p < q)):
            continue
        push[i, t] = min(p / q, top) * a
    return push


def drpo(
    logp: Array,
    gen: Array,
    advantage: Array,
    mask: Mask,
    distance: Array | None,
    threshold: float,
    top: float,
) -> Array:
    """-dloss/dlogp of DRPO (arXiv:2606.09821), its factor written out by cases."""
    push = np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        p, q, a = math.exp(logp[i, t]), math.exp(gen[i, t]), advantage[i, t]
        d = abs(p - q) if distance is None else distance[i, t]
        ahead = (a > 0 and p > q) or (a < 0 and p < q)
        behind = (a > 0 and p < q) or (a < 0 and p > q)
        factor = 1 - d / threshold if ahead else 1 + d / threshold if behind else 1.0
        push[i, t] = min(p / q, top) * factor * a
    return push


def drpo_value(logp: float, gen: float, advantage: float, threshold: float) -> float:
    """The paper's loss of one token, whose derivative in logp is that of the above where nothing is bounded."""
    ratio, q = math.exp(logp - gen), math.exp(gen)
    return -ratio * advantage + abs(advantage) * q * (ratio - 1) ** 2 / (2 * threshold)


def ce_gppo(
    logp: Array,
    old: Array,
    advantage: Array,
    mask: Mask,
    low: float,
    high: float,
    keep_low: float,
    keep_high: float,
) -> Array:
    """-dloss/dlogp of CE-GPPO (arXiv:2509.20712)."""
    push = np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        ratio, a = math.exp(logp[i, t] - old[i, t]), advantage[i, t]
        weight = ratio
        if a > 0 and ratio > 1 + high:
            weight = keep_high * (1 + high)
        if a < 0 and ratio < 1 - low:
            weight = keep_low * (1 - low)
        push[i, t] = weight * a
    return push

"""Policy-gradient losses, one token at a time. Off the mask the answer is 0."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def reinforce(logp: Array, advantage: Array, mask: Mask) -> tuple[Array, Array]:
    """(loss, dloss/dlogp) of the plain policy gradient: Williams 1992."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        loss[i, t] = -advantage[i, t] * logp[i, t]
        slope[i, t] = -advantage[i, t]
    return loss, slope


def ppo_clip(
    logp: Array, old: Array, advantage: Array, mask: Mask, low: float, high: float, dual: float = math.inf
) -> tuple[Array, Array]:
    """(loss, dloss/dlogp) of PPO, equation 7 of arXiv:1707.06347; dual clip of arXiv:1912.09729."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(logp[i, t] - old[i, t])
        loss[i, t], slope[i, t] = _clipped(ratio, advantage[i, t], low, high, dual)
    return loss, slope


def gspo(
    logp: Array, old: Array, advantage: Array, mask: Mask, low: float, high: float
) -> tuple[Array, Array]:
    """(loss, dloss/dlogp) of GSPO-token (arXiv:2507.18071), before the mean over the sequence."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i in range(len(logp)):
        tokens = np.nonzero(mask[i])[0]
        if len(tokens) == 0:
            continue
        ratio = math.exp(sum(logp[i, t] - old[i, t] for t in tokens) / len(tokens))
        for t in tokens:
            loss[i, t], slope[i, t] = _clipped(ratio, advantage[i, t], low, high, math.inf)
    return loss, slope


def gspo_objective(logp: Array, old: Array, advantage: Array, mask: Mask, low: float, high: float) -> float:
    """Minus the objective of GSPO itself (arXiv:2507.18071): one advantage and one ratio a sequence."""
    values = []
    for i in range(len(logp)):
        n = mask[i].sum()
        if n == 0:
            continue
        ratio = math.exp((logp[i][mask[i]] - old[i][mask[i]]).sum() / n)
        a = advantage[i]
        values.append(-min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a))
    return float(np.mean(values))


def cispo(logp: Array, old: Array, advantage: Array, mask: Mask, largest: float) -> tuple[Array, Array]:
    """(loss, dloss/dlogp) of CISPO (arXiv:2506.13585)."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        weight = min(math.exp(logp[i, t] - old[i, t]), largest)
        loss[i, t] = -weight * advantage[i, t] * logp[i, t]
        slope[i, t] = -weight * advantage[i, t]
    return loss, slope


def _clipped(ratio: float, advantage: float, low: float, high: float, dual: float) -> tuple[float, float]:
    free = ratio * advantage
    bounded = min(max(ratio, 1 - low), 1 + high) * advantage
    objective, active = (free, True) if free <= bounded else (bounded, False)
    if advantage < 0 and dual * advantage > objective:
        objective, active = dual * advantage, False
    return -objective, -ratio * advantage if active else 0.0

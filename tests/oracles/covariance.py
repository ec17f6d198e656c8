"""Clip-Cov, KL-Cov and the entropy theorems of arXiv:2505.22617."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def covariance(logp: Array, advantage: Array, mask: Mask) -> dict[tuple[int, int], float]:
    """Of each token on the mask."""
    tokens = list(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    mean_logp = sum(logp[t] for t in tokens) / max(len(tokens), 1)
    mean_advantage = sum(advantage[t] for t in tokens) / max(len(tokens), 1)
    return {t: (logp[t] - mean_logp) * (advantage[t] - mean_advantage) for t in tokens}


def kl_cov_tokens(logp: Array, advantage: Array, mask: Mask, fraction: str) -> Mask:
    """The ⌈fraction·N⌉ tokens of largest covariance; ``fraction`` is a decimal, so exact."""
    values = covariance(logp, advantage, mask)
    chosen = np.zeros(mask.shape, dtype=bool)
    for token in sorted(values, key=lambda t: -values[t])[: math.ceil(Fraction(fraction) * len(values))]:
        chosen[token] = True
    return chosen


def clip_cov(
    logp: Array, old: Array, advantage: Array, mask: Mask, dropped: Mask, low: float, high: float
) -> tuple[Array, Array]:
    """(loss, dloss/dlogp): PPO's, and nothing on the tokens dropped."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask & ~dropped), strict=True):
        ratio, a = math.exp(logp[i, t] - old[i, t]), advantage[i, t]
        clipped = min(max(ratio, 1 - low), 1 + high)
        loss[i, t] = max(-ratio * a, -clipped * a)
        slope[i, t] = -ratio * a if -ratio * a >= -clipped * a else 0.0
    return loss, slope


def kl_cov(
    logp: Array, old: Array, advantage: Array, mask: Mask, penalised: Mask, coef: float, penalty: str
) -> tuple[Array, Array]:
    """(loss, dloss/dlogp): -ratio·A, and on the penalised tokens a distance from the old probability."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        new, before = math.exp(logp[i, t]), math.exp(old[i, t])
        loss[i, t] = slope[i, t] = -new / before * advantage[i, t]
        if penalised[i, t] and penalty == "absolute":
            loss[i, t] += coef * abs(math.log(new / before))
            slope[i, t] += coef * (1 if new > before else -1)
        elif penalised[i, t]:  # a term of Σ old·log(old/new) + new - old, over old; d/dlogp is new·d/dnew
            loss[i, t] += coef * (before * math.log(before / new) + new - before) / before
            slope[i, t] += coef * (new - before) / before
    return loss, slope


def entropy(logits: Array) -> float:
    """Of the softmax."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return float(-(p * np.log(p)).sum())


def entropy_change(logits: Array, advantage: Array, step: float, gradient: str) -> float:
    """What really happens to the entropy when the logits take the step."""
    p = np.exp(logits) / np.exp(logits).sum()
    if gradient == "plain":  # dE[A]/dz, A held fixed: Σ_a A(a) π(a) ([a = k] - π(k))
        move = np.array(
            [sum(advantage[a] * p[a] * ((a == k) - p[k]) for a in range(len(p))) for k in range(len(p))]
        )
    else:
        move = advantage
    return entropy(logits + step * move) - entropy(logits)

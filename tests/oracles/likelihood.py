"""Cross-entropies with weights (arXiv:2411.05193), one token at a time, and where they end."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def weighted(logp: Array, dummy: Array, weight: Array, mask: Mask) -> tuple[Array, Array, Array]:
    """(loss, dloss/dlogp, dloss/ddummy) of minus equation 2."""
    loss, by_token, by_dummy = (np.zeros(logp.shape) for _ in range(3))
    for i, t in zip(*np.nonzero(mask), strict=True):
        w = weight[i, t]
        loss[i, t] = -w * logp[i, t] - (1 - w) * dummy[i, t]
        by_token[i, t], by_dummy[i, t] = -w, w - 1
    return loss, by_token, by_dummy


def observation(logp: Array, observed: Mask, coef: float) -> tuple[Array, Array]:
    """(loss, dloss/dlogp) of what was said between turns."""
    loss, slope = np.zeros(logp.shape), np.zeros(logp.shape)
    for i, t in zip(*np.nonzero(observed), strict=True):
        loss[i, t], slope[i, t] = -coef * logp[i, t], -coef
    return loss, slope


def uniform(logp: Array, action: int, weight: float) -> float:
    """Equation 3 for one token, from the log-probabilities of all actions."""
    spread = (1 - weight) / (len(logp) - 1)
    return -weight * logp[action] - sum(spread * logp[b] for b in range(len(logp)) if b != action)


def weighted_optimum(behaviour: Array, weight: Array) -> Array:
    """Probabilities of the actions and, last, of the dummy, where equation 2 is best."""
    return np.append(behaviour * weight, (behaviour * (1 - weight)).sum())


def uniform_optimum(behaviour: Array, weight: Array) -> Array:
    """Probabilities of the actions where equation 3 is best."""
    k = len(behaviour)
    return np.array(
        [
            behaviour[a] * weight[a]
            + sum(behaviour[b] * (1 - weight[b]) / (k - 1) for b in range(k) if b != a)
            for a in range(k)
        ]
    )

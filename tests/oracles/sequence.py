"""A number per token summed over sequences: the loss's slopes, term by term, in plain loops."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def slopes(
    logp: Array,
    value: Array,
    mask: NDArray[np.bool_],
    logp_gen: Array,
    baseline: Array | None = None,
    weight_max: float = math.inf,
) -> tuple[Array, Array]:
    """(d/dlogp, d/dvalue) of the sum: the pay of each later token by the tokens before it, one pair at a time."""
    in_logp, in_value = np.zeros(logp.shape), np.zeros(logp.shape)
    for row in range(len(logp)):
        columns = [int(t) for t in np.flatnonzero(mask[row])]
        for place, t in enumerate(columns):
            before = columns[:place]
            ratio = math.prod(math.exp(logp[row, s] - logp_gen[row, s]) for s in before)
            weight = min(ratio, weight_max)
            in_value[row, t] = weight
            pay, own = weight * value[row, t], math.exp(logp[row, t] - logp_gen[row, t])
            if baseline is not None:
                pay += weight * (1 - own) * baseline[row, t]  # whose mean over the token is 0
                in_logp[row, t] -= weight * own * baseline[row, t]
            for earlier in before:
                in_logp[row, earlier] += pay
    return in_logp, in_value


def others(logp: Array, value: Array, mask: NDArray[np.bool_], logp_gen: Array, group: list[int]) -> Array:
    """Mean future of the other rows of the group that have the token, weighted by their prefixes with it."""
    future, after = np.zeros(logp.shape), np.zeros(logp.shape)
    for row in range(len(logp)):
        for t in np.flatnonzero(mask[row]):
            for later in np.flatnonzero(mask[row]):
                path = [s for s in np.flatnonzero(mask[row]) if s < later]
                if later > t:
                    future[row, t] += value[row, later] * math.prod(
                        math.exp(logp[row, s] - logp_gen[row, s]) for s in path
                    )
            after[row, t] = math.prod(
                math.exp(logp[row, s] - logp_gen[row, s]) for s in np.flatnonzero(mask[row]) if s <= t
            )
    result = np.zeros(logp.shape)
    for row in range(len(logp)):
        for t in np.flatnonzero(mask[row]):
            peers = [i for i in range(len(logp)) if i != row and group[i] == group[row] and mask[i, t]]
            if peers:
                result[row, t] = sum(future[i, t] for i in peers) / sum(after[i, t] for i in peers)
    return result

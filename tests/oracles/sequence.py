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


def others(value: Array, mask: NDArray[np.bool_], group: list[int]) -> Array:
    """Mean of what is still to come over the other rows of the group that have the token."""
    result = np.zeros(value.shape)
    for row, t in np.argwhere(mask):
        peers = [i for i in range(len(value)) if i != row and group[i] == group[row] and mask[i, t]]
        if peers:
            ahead = [value[i, t + 1 :][mask[i, t + 1 :]].sum() for i in peers]
            result[row, t] = sum(ahead) / len(peers)
    return result

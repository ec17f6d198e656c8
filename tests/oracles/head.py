"""Token statistics and their gradients, one row at a time, in NumPy float64.

The gradients go through the Jacobian of the softmax and the derivative of ``-p log p``, word by word; the
closed form that the package uses appears nowhere here.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Stats(NamedTuple):
    logp: Array
    entropy: Array


class Gradients(NamedTuple):
    hidden: Array
    weight: Array
    bias: Array


def distribution(
    h: Array, weight: Array, bias: Array, temperature: float, softcap: float | None = None
) -> Array:
    """Probabilities of every word after one hidden state."""
    logits = np.array([w @ h + b for w, b in zip(weight, bias, strict=True)])
    if softcap is not None:
        logits = softcap * np.tanh(logits / softcap)
    logits = logits / temperature
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def stats(hidden: Array, weight: Array, target: NDArray[np.int64], bias: Array, temperature: float) -> Stats:
    logp, entropy = [], []
    for h, y in zip(hidden, target, strict=True):
        p = distribution(h, weight, bias, temperature)
        logp.append(np.log(p[y]) if p[y] > 0 else -np.inf)
        entropy.append(sum(-q * np.log(q) for q in p if q > 0))
    return Stats(np.array(logp), np.array(entropy))


def collision(
    hidden: Array, weight: Array, bias: Array, temperature: float, softcap: float | None = None
) -> tuple[Array, Array]:
    """Sums over the vocabulary of p² and of p² log p."""
    rows = [distribution(h, weight, bias, temperature, softcap) for h in hidden]
    squares = [sum(p * p for p in row) for row in rows]
    logs = [sum(p * p * np.log(p) for p in row if p > 0) for row in rows]
    return np.array(squares), np.array(logs)


def gradients(
    hidden: Array,
    weight: Array,
    target: NDArray[np.int64],
    bias: Array,
    temperature: float,
    c: Array,
    e: Array,
) -> Gradients:
    """Gradients of ``sum(c * logp + e * entropy)``."""
    out = Gradients(np.zeros_like(hidden), np.zeros_like(weight), np.zeros_like(bias))
    for n, (h, y) in enumerate(zip(hidden, target, strict=True)):
        p = distribution(h, weight, bias, temperature)
        dp = np.array([-e[n] * (np.log(q) + 1) if q > 0 else 0.0 for q in p])
        dp[y] += c[n] / p[y]
        dlogits = (np.diag(p) - np.outer(p, p)) @ dp / temperature
        out.hidden[n] = dlogits @ weight
        out.weight[...] += np.outer(dlogits, h)
        out.bias[...] += dlogits
    return out

"""Entropy of a softmax before and after its logits moved, word by word, and what is predicted of the change."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def entropy(p: Array) -> float:
    return -sum(q * math.log(q) for q in p.tolist() if q > 0)


def change(logits: Array, token: int, advantage: float, step: float) -> float:
    """Entropy after less entropy before one gradient step on ``advantage * log p[token]``, over the step."""
    push = -advantage * softmax(logits)
    push[token] += advantage
    after, before = (
        softmax(logits + step * push),
        softmax(logits - step * push),
    )  # the error is of third order
    return (entropy(after) - entropy(before)) / (2 * step)


def numbers(p: Array, token: int) -> dict[str, float]:
    """What a policy says of a token drawn from p."""
    positive = [q for q in p.tolist() if q > 0]
    return {
        "logp": math.log(p[token]) if p[token] > 0 else -math.inf,
        "entropy": entropy(p),
        "collision": sum(q * q for q in positive),
        "collision_logp": sum(q * q * math.log(q) for q in positive),
    }


def weights(effect: Array, lowest: float, smallest: float) -> list[float]:
    """STEER's weights from effects, in plain numbers."""
    sizes = [abs(x) for x in effect.tolist()]
    k = -math.log(lowest) / max(*sizes, smallest)
    return [math.exp(-k * size) for size in sizes]

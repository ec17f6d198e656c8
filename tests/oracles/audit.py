"""What a KL penalty does in expectation, by its place: coefficients by hand, sums over all 27 sequences.

The language and its policies are those of ``world``: separate logits for each of 13 prefixes. True gradients
are central differences of exact values.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from oracles import world

Array = NDArray[np.float64]


def coefficients(place: str, logits: Array, reference: Array, sampler: Array) -> Array:
    """dL/dlogp of every token of every sequence, ``[27, 3]``, differentiated on paper.

    The place is ``ESTIMATOR in WHERE``, WHERE being ``loss``, ``loss times rho`` (differentiated), ``loss
    times number`` (the ratio as a constant), ``reward`` (of the token) or ``reward to go``, the last two
    optionally ``times rho`` of the token or ``times product`` of the sequence.
    """
    estimator, _, where = place.partition(" in ")
    delta = world.token_logp(logits) - world.token_logp(reference)
    log_rho = world.token_logp(logits) - world.token_logp(sampler)
    rho = np.exp(log_rho)
    value = {"k1": delta, "k2": delta**2 / 2, "k3": np.exp(-delta) - 1 + delta}[estimator]
    slope = {"k1": np.ones_like(delta), "k2": delta, "k3": 1 - np.exp(-delta)}[estimator]
    to_go = value[:, ::-1].cumsum(axis=1)[:, ::-1]
    product = np.exp(log_rho.sum(axis=1, keepdims=True))
    return {
        "loss": slope,
        "loss times rho": rho * (value + slope),
        "loss times number": rho * slope,
        "reward": value,
        "reward times rho": rho * value,
        "reward to go": to_go,
        "reward to go times rho": rho * to_go,
        "reward to go times product": product * to_go,
    }[where]


def expected_gradient(coefficient: Array, logits: Array, sampler: Array) -> Array:
    """Σ over sequences of P(sequence) Σₜ c·∇logp, in the logits, ``[13, 3]``, one sequence after another."""
    total = np.zeros_like(logits)
    p = world.probabilities(logits)
    for chance, rows, words, slopes in zip(
        world.sequence_probability(sampler), world.ROWS, world.SEQUENCES, coefficient, strict=True
    ):
        for row, word, slope in zip(rows, words, slopes, strict=True):
            score = -p[row].copy()
            score[word] += 1
            total[row] += chance * slope * score
    return total


def true_gradient(name: str, logits: Array, reference: Array, sampler: Array, prefixes: str) -> Array:
    """Of a divergence, by its name in a certificate; ``prefixes`` is ``policy`` or ``behaviour``."""
    other = sampler if name.endswith("_old") else reference
    name = name.removesuffix("_old")
    walk = world.prefix_probability(sampler if prefixes == "behaviour" else logits)
    values: dict[str, Callable[[Array], float]] = {
        "reverse_kl": lambda moved: world.sequence_kl(moved, other),
        "forward_kl": lambda moved: world.sequence_kl(other, moved),
        "reverse_kl_token": lambda moved: world.token_kl(moved, other, "reverse", walk),
        "forward_kl_token": lambda moved: world.token_kl(moved, other, "forward", walk),
        "entropy": lambda moved: world.token_entropy(moved, walk),
    }
    return world.gradient(values[name], logits)


def leftover(gradient: Array, target: Array) -> float:
    """The share of a gradient that no multiple of ``target`` explains."""
    weight = (gradient * target).sum() / (target * target).sum()
    return float(np.linalg.norm(gradient - weight * target) / np.linalg.norm(gradient))

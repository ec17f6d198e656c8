"""A language small enough to list: every sequence of 3 tokens over 3 words, with exact sums over all 27.

A policy is a table of logits, ``[13, 3]``: a row for each of the 1 + 3 + 9 prefixes, a column for each word.
"""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WORDS, LENGTH = 3, 3
PREFIXES = [prefix for n in range(LENGTH) for prefix in itertools.product(range(WORDS), repeat=n)]
#: ``[27, 3]``: the words of each sequence
SEQUENCES = np.array(list(itertools.product(range(WORDS), repeat=LENGTH)))
#: ``[27, 3]``: at each position of each sequence, the row of the prefix before it
ROWS = np.array([[PREFIXES.index(tuple(words[:t])) for t in range(LENGTH)] for words in SEQUENCES.tolist()])


def policy(seed: int) -> Array:
    """Logits of some policy."""
    return np.random.default_rng(seed).normal(size=(len(PREFIXES), WORDS))


def probabilities(logits: Array) -> Array:
    """Of each word after each prefix, ``[13, 3]``."""
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True)


def token_logp(logits: Array) -> Array:
    """Log-probability of each token of each sequence, ``[27, 3]``."""
    return np.log(probabilities(logits))[ROWS, SEQUENCES]


def sequence_probability(logits: Array) -> Array:
    """Of each sequence, ``[27]``."""
    return np.exp(token_logp(logits).sum(axis=1))


def prefix_probability(logits: Array) -> Array:
    """How often each prefix occurs, ``[13]``; the empty one always does."""
    chance = np.zeros(len(PREFIXES))
    for sequence, rows in zip(sequence_probability(logits), ROWS, strict=True):
        chance[rows] += sequence
    return chance


def sequence_kl(logits: Array, reference: Array) -> float:
    """KL(policy ‖ reference) between distributions over the 27 sequences."""
    p, q = sequence_probability(logits), sequence_probability(reference)
    return float((p * np.log(p / q)).sum())


def token_kl(logits: Array, reference: Array, divergence: str, prefixes: Array) -> float:
    """Σ over prefixes of ``prefixes`` times the next word's KL; forward is KL(reference ‖ policy)."""
    p, q = probabilities(logits), probabilities(reference)
    if divergence == "forward":
        p, q = q, p
    return float(prefixes @ (p * np.log(p / q)).sum(axis=1))


def token_entropy(logits: Array, prefixes: Array) -> float:
    """Σ over prefixes of ``prefixes`` times the entropy of the next word."""
    p = probabilities(logits)
    return float(prefixes @ -(p * np.log(p)).sum(axis=1))


def gradient(value: Callable[[Array], float], logits: Array, step: float = 1e-5) -> Array:
    """Of ``value`` in the logits, by central differences: right to about 1e-9."""
    slope = np.zeros(logits.shape)
    for index in np.ndindex(*logits.shape):
        nudge = np.zeros(logits.shape)
        nudge[index] = step
        slope[index] = (value(logits + nudge) - value(logits - nudge)) / (2 * step)
    return slope

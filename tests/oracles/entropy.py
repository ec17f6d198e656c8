"""Entropy's selector, covariance and fit."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def high_entropy_tokens(entropy: Array, mask: Mask, fraction: str) -> Mask:
    """The ⌈fraction·N⌉ tokens on the mask of largest entropy; ``fraction`` is a decimal, so exact."""
    tokens = sorted(zip(*np.nonzero(mask), strict=True), key=lambda token: -entropy[token])
    chosen = np.zeros(mask.shape, dtype=bool)
    for token in tokens[: math.ceil(Fraction(fraction) * len(tokens))]:
        chosen[token] = True
    return chosen


def token_covariance(logp: Array, advantage: Array, mask: Mask) -> Array:
    """Each token's term of the covariance in arXiv:2505.22617."""
    answer = np.zeros(mask.shape)
    answer[mask] = (logp[mask] - logp[mask].mean()) * (advantage[mask] - advantage[mask].mean())
    return answer


def fit_reward_entropy(entropy: Array, reward: Array) -> tuple[float, float, Array]:
    """(a, b, covariance of a and b) of R = -a exp(H) + b by the normal equations."""
    design = np.stack([-np.exp(entropy), np.ones(len(entropy))], axis=1)
    coefficients = np.linalg.solve(design.T @ design, design.T @ reward)
    residual = reward - design @ coefficients
    variance = residual @ residual / (len(entropy) - 2)
    return float(coefficients[0]), float(coefficients[1]), variance * np.linalg.inv(design.T @ design)

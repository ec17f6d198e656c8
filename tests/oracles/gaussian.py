"""Gaussians, by numerical integration of their densities rather than by the closed forms."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: nodes and weights for the mean of a polynomial (up to degree 79) under a standard normal
NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


def log_density(x: Array | float, mean: float, std: float) -> Array:
    """Of N(mean, std²) at x."""
    return -((x - mean) ** 2) / (2 * std**2) - np.log(std * math.sqrt(2 * math.pi))


def logp(x: Array, mean: Array, std: Array) -> float:
    """Log-density of independent coordinates."""
    return float(sum(log_density(*xyz) for xyz in zip(x, mean, std, strict=True)))


def kl(mean_p: Array, std_p: Array, mean_q: Array, std_q: Array) -> float:
    """Σ over coordinates of E_p[log p - log q]: the log-ratio is quadratic, so the quadrature is exact."""
    total = 0.0
    for mp, sp, mq, sq in zip(mean_p, std_p, mean_q, std_q, strict=True):
        x = mp + sp * NODES
        total += float(WEIGHTS @ (log_density(x, mp, sp) - log_density(x, mq, sq)))
    return total


def equation_38(mean: Array, std_1: float, mean_ref: Array, std_2: float) -> float:
    """KL of isotropic Gaussians in k dimensions, in "Rethinking the Reference Model in RLHF" (2025)."""
    k, distance = len(mean), float(((mean - mean_ref) ** 2).sum())
    return k * (math.log(std_2 / std_1) + std_1**2 / (2 * std_2**2) - 1 / 2) + distance / (2 * std_2**2)


def equation_44(mean: Array, mean_ref: Array, std_2: float) -> Array:
    """Its gradient in the first mean (there with a minus on both sides)."""
    return (mean - mean_ref) / std_2**2

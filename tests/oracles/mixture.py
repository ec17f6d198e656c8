"""The mixtures between two distributions, written from their definitions in NumPy float64."""

import numpy as np
from scipy.optimize import brentq


def normalise(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def mixture(policy: np.ndarray, target: np.ndarray, alpha: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.exp(normalise(alpha * normalise(policy) + (1 - alpha) * normalise(target)))


def kl(q: np.ndarray, p: np.ndarray) -> float:
    some = q > 0
    return float(np.sum(q[some] * (np.log(q[some]) - np.log(p[some]))))


def chernoff(policy: np.ndarray, target: np.ndarray) -> float:
    """alpha at which both KLs agree, straight from their sums."""
    p, t = np.exp(normalise(policy)), np.exp(normalise(target))

    def gap(alpha: float) -> float:
        q = mixture(policy, target, alpha)
        return kl(q, p) - kl(q, t)

    return float(brentq(gap, 0, 1, xtol=1e-14))


def log_affinity(policy: np.ndarray, target: np.ndarray, alpha: float) -> float:
    return float(np.logaddexp.reduce(alpha * normalise(policy) + (1 - alpha) * normalise(target)))


def snr(policy: np.ndarray, target: np.ndarray, q: np.ndarray, r: np.ndarray) -> float:
    wr = policy / q * r
    variance = np.sum(policy * wr**2) - np.sum(policy * wr) ** 2
    return float(abs(np.sum((target - policy) * wr)) / np.sqrt(variance))

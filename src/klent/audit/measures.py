"""Divergences and the entropy of distributions that are listed whole, for candidates and for streams.

Each is a function of log-probabilities ``[..., K]``, of the policy and of another distribution; it returns nats
(or what the divergence has for a unit), ``[...]``.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Measure = Callable[[Tensor, Tensor], Tensor]
#: the skew of ``skewed_kl``: the share of the policy in the mixture that it is held to
SKEW = 0.1
#: orders of the alpha-divergence that are candidates; 1 is the reverse KL, 0 the forward, 1/2 four times Hellinger
ALPHAS = (0.25, 0.75, 1.5)


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q)."""
    return (p.exp() * (p - q)).sum(dim=-1)


def forward_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(q ‖ p)."""
    return (q.exp() * (q - p)).sum(dim=-1)


def jeffreys_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) + KL(q ‖ p)."""
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1)


def skewed_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ SKEW·p + (1 - SKEW)·q)."""
    return reverse_kl(p, torch.logaddexp(p + math.log(SKEW), q + math.log(1 - SKEW)))


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """½ Σ |p - q|."""
    return (p.exp() - q.exp()).abs().sum(dim=-1) / 2


def chi_squared(p: Tensor, q: Tensor) -> Tensor:
    """Σ (p - q)² / q."""
    return (2 * p - q).exp().sum(dim=-1) - 1


def chi_squared_forward(p: Tensor, q: Tensor) -> Tensor:
    """Σ (q - p)² / p."""
    return chi_squared(q, p)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m), m the mean of both."""
    middle = torch.logaddexp(p, q) - math.log(2)
    return (reverse_kl(p, middle) + reverse_kl(q, middle)) / 2


def hellinger(p: Tensor, q: Tensor) -> Tensor:
    """The squared Hellinger distance, ½ Σ (√p - √q)²."""
    return 1 - ((p + q) / 2).exp().sum(dim=-1)


def alpha_divergence(p: Tensor, q: Tensor, *, alpha: float) -> Tensor:
    """(Σ p^α·q^(1-α) - 1) / (α·(α - 1))."""
    return ((alpha * p + (1 - alpha) * q).exp().sum(dim=-1) - 1) / (alpha * (alpha - 1))


def entropy(p: Tensor, _: Tensor) -> Tensor:
    """-Σ p·log p."""
    return -(p.exp() * p).sum(dim=-1)


#: divergences that a penalty usually is
COMMON: dict[str, Measure] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "total_variation": total_variation,
}
#: the others, by name
RARE: dict[str, Measure] = {
    "jeffreys_kl": jeffreys_kl,
    "skewed_kl": skewed_kl,
    "chi_squared": chi_squared,
    "chi_squared_forward": chi_squared_forward,
    "jensen_shannon": jensen_shannon,
    "hellinger": hellinger,
    **{f"alpha_{alpha}": partial(alpha_divergence, alpha=alpha) for alpha in ALPHAS},
}
#: streams that carry a gradient -> the divergence from the reference that they are at each prefix
TO_REFERENCE: dict[str, Measure] = {
    "kl": reverse_kl,
    "forward_kl": forward_kl,
    "jeffreys_kl": jeffreys_kl,
    "skewed_kl": skewed_kl,
}

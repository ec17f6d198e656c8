"""How efficient a sampling distribution is: expected progress of a step, its maximum, and sampling noise."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from klent.objectives.checks import check_same_shape


class ProgressTerms(NamedTuple):
    """The expansion progress = eta·Φ₁ - eta²/2·Φ₂ + O(eta³) of one step, ``[...]`` each."""

    signal: Tensor
    curvature: Tensor

    @property
    def best_step(self) -> Tensor:
        """eta* = Φ₁/Φ₂, where the expansion is largest; negative where Φ₁ is."""
        return self.signal / self.curvature

    @property
    def snr(self) -> Tensor:
        """Φ₁/√Φ₂, with the sign of Φ₁: below 0 the step would have to go backwards."""
        return self.signal / self.curvature.sqrt()


def progress_terms(policy: Tensor, target: Tensor, q: Tensor, reward: Tensor) -> ProgressTerms:
    """Signal and curvature of the step policy' ∝ policy·exp(eta·w·r) with w = policy/q.

        Φ₁ = Σ (target - policy)·w·r        Φ₂ = Var_policy[w·r]

    Progress is the change of E_target[log policy]. Φ₂ is the curvature of a step that is computed for every
    token; it is not the variance of an estimate from samples, which is ``sampling_variance``.

    Args:
        policy, target, q: probabilities, ``[..., V]``; q above 0 wherever the policy is.
        reward: r, ``[..., V]``.

    Returns:
        ``ProgressTerms``, with ``best_step`` and ``snr``.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes differ.

    Example:
        >>> policy, target = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> terms = progress_terms(policy, target, policy, torch.tensor([0.0, 1.0]))
        >>> terms.signal.item(), terms.curvature.item(), terms.best_step.item()
        (0.25, 0.25, 1.0)
    """
    check_same_shape(policy=policy, target=target, q=q, reward=reward)
    weighted = _weight(policy, q) * reward
    mean = (policy * weighted).sum(-1)
    signal = (target * weighted).sum(-1) - mean
    return ProgressTerms(signal, (policy * (weighted - mean.unsqueeze(-1)).square()).sum(-1))


def progress(policy: Tensor, target: Tensor, q: Tensor, reward: Tensor, eta: float) -> Tensor:
    """The progress itself, not expanded: E_target[log policy' - log policy].

        Σ target·eta·w·r - log Σ policy·exp(eta·w·r)

    Args:
        policy, target, q, reward: as of :func:`progress_terms`.
        eta: size of the step.

    Returns:
        Nats, ``[...]``.

    Example:
        >>> policy, target = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> round(progress(policy, target, policy, torch.tensor([0.0, 1.0]), 1.0).item(), 4)
        0.1299
    """
    check_same_shape(policy=policy, target=target, q=q, reward=reward)
    change = eta * _weight(policy, q) * reward
    log_z = torch.logsumexp(torch.where(policy > 0, policy.log() + change, -math.inf), -1)
    return (target * change).sum(-1) - log_z


def chi_squared(target: Tensor, policy: Tensor) -> Tensor:
    """χ²(target ‖ policy) = Σ target²/policy - 1: no q has a larger Φ₁²/Φ₂, whatever the reward.

    Args:
        target, policy: probabilities, ``[..., V]``.

    Returns:
        ``[...]``, inf where the target has a token that the policy lacks.

    Example:
        >>> chi_squared(torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5])).item()
        0.25
    """
    check_same_shape(target=target, policy=policy)
    excess = (target - policy).square() / policy
    return torch.where((policy == 0) & (target == 0), 0.0, excess).sum(-1)


def snr_optimal(policy: Tensor, target: Tensor) -> Tensor:
    """The q, not normalised, that attains the χ² bound for the reward log(target/policy).

        q = policy²·log(target/policy) / (target - policy) = policy² / L(policy, target)

    L is the logarithmic mean. Where the two are close this is policy^1.5·target^-0.5: alpha 3/2, away from
    the target and outside the family between the two.

    Args:
        policy, target: probabilities above 0, ``[..., V]``.

    Returns:
        Weights, ``[..., V]``; divide by their sum for a distribution.

    Example:
        >>> snr_optimal(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        tensor([0.6931, 0.4055])
    """
    check_same_shape(policy=policy, target=target)
    x = (target - policy) / policy
    small = x.abs() < 1e-4
    safe = torch.where(small, 1.0, x)
    return policy * torch.where(small, 1 - x / 2 + x.square() / 3, torch.log1p(safe) / safe)


def sampling_variance(policy: Tensor, q: Tensor, field: Tensor) -> Tensor:
    """Variance of one sample of w·f, w = policy/q: summed over the coordinates of f.

        Σ policy²/q·‖f‖² - ‖Σ policy·f‖²

    With N samples from q the error of the mean has this over N; its mean is the same for every q that covers
    the policy, so that q moves the noise and nothing else.

    Args:
        policy, q: probabilities, ``[..., V]``.
        field: f of each token, ``[..., V, D]``: a gradient, or a reward with D = 1.

    Returns:
        ``[...]``, inf where q misses a token that matters.

    Example:
        >>> p, f = torch.tensor([0.5, 0.5]), torch.tensor([[1.0], [3.0]])
        >>> sampling_variance(p, p, f).item(), sampling_variance(p, variance_optimal(p, f), f).item()
        (1.0, 0.0)
    """
    check_same_shape(policy=policy, q=q)
    size = field.square().sum(-1)
    second = torch.where((policy == 0) | (size == 0), 0.0, policy.square() / q * size).sum(-1)
    return (second - (policy.unsqueeze(-1) * field).sum(-2).square().sum(-1)).clamp_min(0)


def variance_optimal(policy: Tensor, field: Tensor) -> Tensor:
    """The q of least :func:`sampling_variance`: policy·‖f‖, normalised.

    Args:
        policy: probabilities, ``[..., V]``.
        field: f of each token, ``[..., V, D]``.

    Returns:
        Probabilities, ``[..., V]``; the policy where f is 0 everywhere.

    Example:
        >>> variance_optimal(torch.tensor([0.5, 0.5]), torch.tensor([[1.0], [3.0]]))
        tensor([0.2500, 0.7500])
    """
    weight = policy * field.square().sum(-1).sqrt()
    total = weight.sum(-1, keepdim=True)
    return torch.where(total > 0, weight / torch.where(total > 0, total, 1.0), policy)


def _weight(policy: Tensor, q: Tensor) -> Tensor:
    """policy/q, 0 where neither is sampled."""
    return torch.where(policy == 0, 0.0, policy / q)

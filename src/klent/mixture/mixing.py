"""One token's mixture for every row: alpha given or solved, and how far the result is from either side."""

from typing import NamedTuple

import torch
from torch import Tensor

from klent.mixture.chernoff import TILE
from klent.mixture.criteria import Criterion
from klent.mixture.geometric import check_pair, geometric_mixture, in_working_precision
from klent.mixture.solve import solve_alpha
from klent.objectives.checks import check_number


class Mixed(NamedTuple):
    """A mixture for every row, ``[...]`` each but for ``log_q``; float32 (float64 for float64 inputs)."""

    log_q: Tensor
    """Log-probabilities, nats, ``[..., V]``."""
    alpha: Tensor
    """Share of the policy."""
    kl_policy: Tensor
    """KL(q ‖ policy), nats."""
    kl_target: Tensor
    """KL(q ‖ target), nats; inf where q is the policy and the target lacks some of its tokens."""


def mix(
    logits_policy: Tensor,
    logits_target: Tensor,
    *,
    alpha: float | Criterion = "chernoff",
    value: float | None = None,
) -> Mixed:
    """The distribution that a token is drawn from: the mixture at a given alpha, or where a criterion is met.

    Args:
        logits_policy: ``[..., V]``, any floating dtype; -inf is probability 0.
        logits_target: the same for the target.
        alpha: share of the policy in [0, 1], or the criterion that chooses it row by row (``chernoff``,
            ``snr``, ``kl_budget``, ``entropy``, ``ess``).
        value: what ``kl_budget``, ``entropy`` or ``ess`` aim at; None for the others.

    Returns:
        ``Mixed``, without gradient. It does not say whether a criterion could be met; ``solve_alpha`` does.

    Raises:
        TypeError: a tensor is not floating point, or a number is not one.
        ValueError: as of :func:`klent.mixture.geometric_mixture` and :func:`klent.mixture.solve_alpha`.

    Example:
        >>> import torch
        >>> from klent import mixture
        >>> policy, target = torch.tensor([0.5, 0.4, 0.1]).log(), torch.tensor([0.1, 0.4, 0.5]).log()
        >>> found = mixture.mix(policy, target, alpha=0.5)
        >>> found.log_q.exp(), round(found.kl_policy.item(), 4)
        (tensor([0.2639, 0.4721, 0.2639]), 0.1658)
        >>> round(mixture.mix(policy, target, alpha="kl_budget", value=0.1).alpha.item(), 4)
        0.6082
    """
    if isinstance(alpha, str):
        found = solve_alpha(logits_policy, logits_target, criterion=alpha, value=value)
        return Mixed(found.log_q, found.alpha, found.kl_policy, found.kl_target)
    check_number("alpha", alpha, 0, 1)
    if value is not None:
        raise ValueError(f"value is {value}, but alpha is given: a value belongs to a criterion")
    check_pair(logits_policy, logits_target)
    policy, target = in_working_precision(logits_policy, logits_target)
    shape, vocabulary = policy.shape[:-1], policy.shape[-1]
    policy, target = policy.reshape(-1, vocabulary), target.reshape(-1, vocabulary)
    # A few rows at a time: they stay in the cache from one pass to the next.
    rows = max(1, TILE // vocabulary) if policy.device.type == "cpu" else max(1, len(policy))
    parts = [_given(p, t, alpha) for p, t in zip(policy.split(rows), target.split(rows), strict=True)]
    log_q, kl_policy, kl_target = map(torch.cat, zip(*parts, strict=True))
    return Mixed(
        log_q.view(*shape, vocabulary),
        torch.full(shape, float(alpha), dtype=policy.dtype, device=policy.device),
        kl_policy.view(shape),
        kl_target.view(shape),
    )


def _given(policy: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    log_q = geometric_mixture(policy, target, alpha)
    q = log_q.exp()
    sampled = q > 0

    def divergence(logits: Tensor) -> Tensor:
        gap = log_q - logits.log_softmax(-1)
        return torch.where(sampled, q * gap, 0.0).sum(-1).clamp_min(0)

    return log_q, divergence(policy), divergence(target)

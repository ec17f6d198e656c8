"""The mixture that one token per row is drawn from: alpha given or solved, and the KL to either side."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from klent.mixture.criteria import Criterion
from klent.mixture.geometric import check_pair, geometric_mixture, in_working_precision
from klent.mixture.solve import solve_alpha
from klent.objectives.checks import check_number

LOG2_E = 1 / math.log(2)
TILE = 160_000  # logits worked on together on a CPU: they stay in its cache from one pass to the next


class Mixed(NamedTuple):
    """One mixture per row, ``[...]`` each except ``log_q``; float32 (float64 for float64 inputs)."""

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
    alpha: float | Tensor | Criterion = "chernoff",
    value: float | None = None,
) -> Mixed:
    """The distribution that a token is drawn from: the mixture at a given alpha, or where a criterion is met.

    Args:
        logits_policy: ``[..., V]``, any floating dtype; -inf is probability 0.
        logits_target: the same for the target.
        alpha: share of the policy in [0, 1], one number or a tensor that broadcasts to ``[...]`` (whose
            values are not checked); or the criterion that chooses it row by row (``chernoff``, ``snr``,
            ``kl_budget``, ``entropy``, ``ess``).
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
        >>> mixed = mixture.mix(policy, target, alpha=0.5)
        >>> mixed.log_q.exp(), round(mixed.kl_policy.item(), 4)
        (tensor([0.2639, 0.4721, 0.2639]), 0.1658)
        >>> round(mixture.mix(policy, target, alpha="kl_budget", value=0.1).alpha.item(), 4)
        0.6082
    """
    if isinstance(alpha, str):
        solution = solve_alpha(logits_policy, logits_target, criterion=alpha, value=value)
        return Mixed(solution.log_q, solution.alpha, solution.kl_policy, solution.kl_target)
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha, 0, 1)
    if value is not None:
        raise ValueError(f"value is {value}, but alpha is given: a value belongs to a criterion")
    check_pair(logits_policy, logits_target)
    policy, target = in_working_precision(logits_policy, logits_target)
    shape, vocabulary = policy.shape[:-1], policy.shape[-1]
    share = torch.as_tensor(alpha, dtype=policy.dtype, device=policy.device).expand(shape)
    policy, target = policy.reshape(-1, vocabulary), target.reshape(-1, vocabulary)
    rows = max(1, TILE // vocabulary) if policy.device.type == "cpu" else max(1, len(policy))
    tiles = zip(policy.split(rows), target.split(rows), share.reshape(-1).split(rows), strict=True)
    parts = [_given(*tile) for tile in tiles]
    log_q, kl_policy, kl_target = map(torch.cat, zip(*parts, strict=True))
    return Mixed(
        log_q.view(*shape, vocabulary),
        share.clone(),
        kl_policy.view(shape),
        kl_target.view(shape),
    )


def _given(policy: Tensor, target: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log q and both KLs for a tile of rows, each with its alpha.

    With d = target - policy, both KLs follow from E_q[d] and the three normalisers.
    """
    policy_below, target_below = (logits - logits.amax(-1, keepdim=True) for logits in (policy, target))
    # A GPU is not asked: the host would wait for it, and a recorded step may not.
    if policy.is_cuda or not torch.isfinite(policy_below.amin() + target_below.amin()):
        return _given_supports(policy, target, alpha)
    log_q = torch.lerp(target_below, policy_below, alpha.unsqueeze(-1))
    # exp2 takes a quarter of the time of exp on a CPU.
    top = log_q.amax(-1)
    weight = torch.exp2((log_q - top.unsqueeze(-1)).mul_(LOG2_E))
    total = weight.sum(-1)
    log_total = total.log() + top
    log_policy, log_target = (torch.exp2(x * LOG2_E).sum(-1).log() for x in (policy_below, target_below))
    mean = torch.linalg.vecdot(weight, target_below.sub_(policy_below)) / total
    log_q -= log_total.unsqueeze(-1)
    kl_policy = (1 - alpha) * mean + (log_policy - log_total)
    kl_target = (log_target - log_total) - alpha * mean
    return log_q, kl_policy.clamp_min(0), kl_target.clamp_min(0)


def _given_supports(policy: Tensor, target: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same where some tokens have probability 0."""
    log_q = geometric_mixture(policy, target, alpha)
    q = log_q.exp()
    sampled = q > 0

    def divergence(logits: Tensor) -> Tensor:
        gap = log_q - logits.log_softmax(-1)
        return torch.where(sampled, q * gap, 0.0).sum(-1).clamp_min(0)

    return log_q, divergence(policy), divergence(target)

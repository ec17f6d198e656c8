"""Weights for tokens that another policy sampled than the one being trained."""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives.checks import check_choice, check_number, check_tokens
from klent.objectives.kinds import estimator
from klent.objectives.masking import on_mask

__all__ = ["importance_weight"]


@estimator
def importance_weight(
    logp_old: Tensor,
    logp_gen: Tensor,
    mask: Tensor,
    *,
    ratio: Literal["token", "sequence"] = "token",
    low: float = 0.0,
    high: float = 2.0,
    outside: Literal["truncate", "drop"] = "truncate",
    normalise: bool = False,
) -> Tensor:
    """How much more often the trainer's policy would have produced each token than the sampler did, bounded.

        token      ρₜ = exp(logp_oldₜ - logp_genₜ)
        sequence   ρₜ = exp(Σ over the sequence's tokens of logp_old - logp_gen), the same for all of them
        truncate   wₜ = min(max(ρₜ, low), high)
        drop       wₜ = ρₜ where low <= ρₜ <= high, else 0
        normalise  wₜ divided by its mean over the tokens, or over the sequences

    An engine samples from slightly other probabilities than the trainer computes (other kernels, other
    precision, weights one update old). Weighted by w a batch counts as if the trainer had sampled it.

    Args:
        logp_old: log-probabilities of the sampled tokens under the trainer's policy at the start of the
            update, nats, ``[B, T]``. Receives no gradient.
        logp_gen: the same as the sampler reported them, for the distribution it really sampled from (after
            temperature, top-p and top-k), nats, ``[B, T]``.
        mask: True on the sampled tokens, ``[B, T]`` bool. With ``ratio="sequence"`` a row is one sequence.
        ratio: whether a token is weighted by its own ratio or by its sequence's.
        low: smallest ratio, in [0, 1].
        high: largest ratio, in [1, inf]; inf is no bound.
        outside: what happens to a ratio out of bounds.
        normalise: whether weights are divided by their mean, dropped ones included: self-normalised
            importance sampling. The mean is over the tensors given: give a step, not a micro-batch.

    Returns:
        ``[B, T]``, without gradient, 0 off the mask. Multiply a surrogate's ``loss``, or the advantage, by
        it. Unless ``normalise`` is set they do not sum to the number of tokens.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a bound not a number.
        ValueError: shapes differ, a bound is out of range, or a choice is unknown.

    Note:
        *Exactness.* Unbounded sequence weights make the mean of ``reinforce`` over the sampler's sequences
        equal to its mean over the trainer's; their variance grows exponentially with length. Token weights
        do so for sequences of one token only: they correct how likely a token is after its prefix, not how
        likely the prefix is, so what they leave is first order in the mismatch. Either bound adds a bias,
        towards less weight on the rest. So does ``normalise``, of order 1 over the number of sequences; in
        return a step keeps its size when every ratio is small, and the ratios' common factor drops out.

        *With ``ppo_clip``* this is a second ratio, beside that of the policy being trained and ``logp_old``:
        weigh its loss, and keep ``logp_old`` the trainer's own.

        *Names.* ``truncate`` with high 2 is TIS. ``drop`` with bounds such as 0.5 and 2 is MIS, or IcePop; a
        dropped token still counts in ``reduce_tokens`` unless the mask there leaves it out.

    Example:
        The ratios are 1.5, 4 and 0.25.

        >>> import torch
        >>> from klent.objectives import importance_weight, reinforce
        >>> logp, logp_gen = torch.tensor([[0.6, 0.4, 0.1]]).log(), torch.tensor([[0.4, 0.1, 0.4]]).log()
        >>> mask = torch.tensor([[True, True, True]])
        >>> importance_weight(logp, logp_gen, mask)
        tensor([[1.5000, 2.0000, 0.2500]])
        >>> importance_weight(logp, logp_gen, mask, low=0.5, outside="drop")
        tensor([[1.5000, 0.0000, 0.0000]])
        >>> importance_weight(logp, logp_gen, mask, ratio="sequence")
        tensor([[1.5000, 1.5000, 1.5000]])
        >>> importance_weight(logp, logp_gen, mask, high=float("inf"), normalise=True).sum()
        tensor(3.)
        >>> loss = reinforce(logp, torch.ones(1, 3), mask).loss * importance_weight(logp, logp_gen, mask)

    References:
        Yao et al., Your Efficient RL Framework Secretly Brings You Off-Policy RL Training, 2025.
        Ionides, Truncated Importance Sampling, Journal of Computational and Graphical Statistics 17, 2008.
    """
    check_tokens(mask, logp_old=logp_old, logp_gen=logp_gen)
    check_choice("ratio", ratio, ("token", "sequence"))
    check_choice("outside", outside, ("truncate", "drop"))
    check_number("low", low, 0, 1)
    check_number("high", high, 1, math.inf)
    logp_old, logp_gen = on_mask(mask, logp_old.detach(), logp_gen.detach())
    log_ratio = logp_old - logp_gen
    if ratio == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).expand_as(log_ratio)
    bounded = log_ratio.clamp(math.log(low) if low > 0 else -math.inf, math.log(high))
    kept = mask if outside == "truncate" else mask & (bounded == log_ratio)
    if normalise:
        return _over_its_mean(bounded, kept, mask, whole=ratio == "sequence")
    (weight,) = on_mask(kept, bounded.exp())
    return weight


def _over_its_mean(log_weight: Tensor, kept: Tensor, mask: Tensor, *, whole: bool) -> Tensor:
    """exp(log_weight) over its mean; the largest is taken out first, so that nothing over- or underflows."""
    top = torch.where(kept, log_weight, -math.inf).amax().clamp_min(torch.finfo(log_weight.dtype).min)
    (weight,) = on_mask(kept, (log_weight - top).exp())
    units = weight.amax(dim=1) if whole else weight
    count = (mask.any(dim=1) if whole else mask).sum().clamp_min(1)
    return weight * (count / units.sum()).nan_to_num(nan=0.0, posinf=0.0)

"""Policy gradient: losses whose derivative pushes each token by its advantage."""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives.checks import check_choice, check_number, check_tokens
from klent.objectives.kinds import token_loss, without_advantage
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["cispo", "ppo_clip", "reinforce"]


@token_loss(idle=without_advantage)
def reinforce(logp: Tensor, advantage: Tensor, mask: Tensor) -> TokenLoss:
    """Plain policy gradient.

        Lₜ = -Aₜ·logpₜ

    A token is pushed by its advantage, whatever its probability and however often its batch is reused.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; no metrics. Its value has no
        meaning of its own, only its gradient has.

    Raises:
        TypeError: ``mask`` is not bool or another tensor not floating point.
        ValueError: shapes differ.

    Note:
        *Gradient.* ``-dL/dlogp = A``. Its mean is the gradient of the expected reward only while the tokens
        come from the policy being trained; on reused batches take ``ppo_clip`` or ``cispo``.

    Example:
        >>> import torch
        >>> from klent.objectives import reinforce
        >>> logp = torch.tensor([[-0.5, -2.0, -1.0]])
        >>> advantage = torch.tensor([[1.0, -1.0, 9.0]])
        >>> reinforce(logp, advantage, torch.tensor([[True, True, False]])).loss
        tensor([[ 0.5000, -2.0000,  0.0000]])

    References:
        Williams, Simple Statistical Gradient-Following Algorithms, Machine Learning 8, 1992.
    """
    check_tokens(mask, logp=logp, advantage=advantage)
    logp, cost = on_mask(mask, logp, -advantage.detach())
    return TokenLoss(cost * logp, {})


@token_loss(idle=without_advantage)
def ppo_clip(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Literal["token", "sequence"] = "token",
    dual_clip: float | None = None,
) -> TokenLoss:
    """Policy gradient that leaves a token alone once its probability has moved far enough.

        token       ρₜ = exp(logpₜ - logp_oldₜ)
        sequence    ρₜ = exp(mean over the sequence's tokens of logp - logp_old), the same for all of them
        Lₜ = -min(ρₜ·Aₜ, clip(ρₜ, 1 - clip_low, 1 + clip_high)·Aₜ)
        with dual_clip, where Aₜ < 0:   Lₜ is at most -dual_clip·Aₜ

    A good token is pushed up until it is ``1 + clip_high`` times as likely as at the start of the update, a
    bad one down until it is ``1 - clip_low`` times as likely. A token that moved the wrong way is never
    clipped.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``, at the temperature
            of ``logp``. Receives no gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool. With ``ratio="sequence"`` a row is one
            sequence, and the mean is over its tokens on the mask.
        clip_low: how far the ratio of a bad token may fall below 1, in [0, 1]; 1 is no bound.
        clip_high: how far the ratio of a good token may rise above 1, in [0, inf]; inf is no bound.
        ratio: ``token`` is PPO and GRPO, ``sequence`` is GSPO.
        dual_clip: largest ratio at which a bad token is still pushed down, above 1; None is no bound.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metrics, over tokens: ``ratio``
        before clipping, and ``clip_low``, ``clip_high`` (and ``clip_dual``), the tokens whose gradient the
        bound removed. A ratio out of bounds on the side where its advantage's sign lets it pass is not
        counted.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a bound not a number.
        ValueError: shapes differ, a bound is out of range or ``ratio`` is unknown.

    Note:
        *Gradient.* ``-dL/dlogp = ρ·A`` where not clipped, else 0. Where ``logp == logp_old`` it is
        ``reinforce``'s.

        *Sequence ratio.* Every token carries its sequence's value but the derivative of its own
        log-probability alone, ρ·A (the paper's GSPO-token). Where a sequence has one advantage, the mean
        over its tokens has the value and the gradient of the paper's objective, ``min(ρA, clip(ρ)A)`` per
        sequence. A mean ratio moves little: the paper's bounds are 3e-4 below and 4e-4 above.

        *Against released code.* DAPO's clip-higher is ``clip_high=0.28``. verl's ``clip_ratio_c`` is
        ``dual_clip``; there it is 3 unless set, here it is off.

    Example:
        Both ratios are 1.5, out of bounds; only the good token is clipped, at 1.2.

        >>> import torch
        >>> from klent.objectives import ppo_clip
        >>> logp_old = torch.tensor([[0.2, 0.2]]).log()
        >>> logp = torch.tensor([[0.3, 0.3]]).log()
        >>> out = ppo_clip(logp, logp_old, torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]]))
        >>> out.loss
        tensor([[-1.2000,  1.5000]])
        >>> out.metrics["clip_high"], out.metrics["clip_low"]
        ((tensor(1.), tensor(2.)), (tensor(0.), tensor(2.)))

    References:
        Schulman et al., Proximal Policy Optimization Algorithms, 2017, arXiv:1707.06347.
        Ye et al., Mastering Complex Control in MOBA Games (dual clip), 2019, arXiv:1912.09729.
        Yu et al., DAPO (clip-higher), 2025, arXiv:2503.14476.
        Zheng et al., Group Sequence Policy Optimization, 2025, arXiv:2507.18071.
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, advantage=advantage)
    check_number("clip_low", clip_low, 0, 1)
    check_number("clip_high", clip_high, 0, math.inf)
    check_choice("ratio", ratio, ("token", "sequence"))
    if dual_clip is not None:
        check_number("dual_clip", dual_clip, 1, math.inf, ends="(]")

    logp, logp_old, advantage = on_mask(mask, logp, logp_old.detach(), advantage.detach())
    log_ratio = logp - logp_old
    if ratio == "sequence":
        log_ratio = _sequence_log_ratio(log_ratio, mask)
    floor = math.log(1 - clip_low) if clip_low < 1 else -math.inf
    ceiling = math.log1p(clip_high)
    dual = math.inf if dual_clip is None else math.log(dual_clip)

    # The minimum bounds the ratio on one side: from above where A > 0, from below where A < 0 (dual_clip adds
    # a bound from above there). Bounding its logarithm keeps exp from overflowing in a branch that is not
    # taken, whose gradient would be 0·inf; where A = 0 both bounds hold, for the same reason.
    lower = torch.full_like(log_ratio, -math.inf).masked_fill(advantage <= 0, floor)
    upper = torch.full_like(log_ratio, dual).masked_fill(advantage >= 0, ceiling)
    (loss,) = on_mask(mask, -advantage * log_ratio.clamp(lower, upper).exp())

    metrics = {
        "ratio": metric(log_ratio.exp(), mask),
        "clip_low": metric((advantage < 0) & (log_ratio < floor), mask),
        "clip_high": metric((advantage > 0) & (log_ratio > ceiling), mask),
    }
    if dual_clip is not None:
        metrics["clip_dual"] = metric((advantage < 0) & (log_ratio > dual), mask)
    return TokenLoss(loss, metrics)


@token_loss(idle=without_advantage)
def cispo(
    logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor, *, ratio_max: float = 5.0
) -> TokenLoss:
    """Policy gradient that bounds the weight of a token instead of leaving it out.

        ρₜ = exp(logpₜ - logp_oldₜ)
        Lₜ = -stop_gradient(min(ρₜ, ratio_max))·Aₜ·logpₜ

    Every token keeps a gradient, also the rare ones that ``ppo_clip`` would silence.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        ratio_max: largest weight, in [1, inf]; the paper's 1 + ε_high. inf is plain importance sampling.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; its value has no meaning of its
        own. Metrics, over tokens: ``ratio`` before bounding, and ``clip_high``, the tokens whose weight was
        bounded.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``ratio_max`` not a number.
        ValueError: shapes differ or ``ratio_max`` is below 1.

    Note:
        *Gradient.* ``-dL/dlogp = min(ρ, ratio_max)·A``, for either sign of A, where ``ppo_clip`` has 0 if it
        clips.

    Example:
        The first weight is 0.8 / 0.1 = 8, bounded by 5; the second 0.3 / 0.2 = 1.5.

        >>> import torch
        >>> from klent.objectives import cispo
        >>> logp = torch.tensor([[0.8, 0.3]]).log().requires_grad_()
        >>> logp_old = torch.tensor([[0.1, 0.2]]).log()
        >>> out = cispo(logp, logp_old, torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]]))
        >>> -torch.autograd.grad(out.loss.sum(), logp)[0]
        tensor([[ 5.0000, -1.5000]])

    References:
        MiniMax, MiniMax-M1, 2025, arXiv:2506.13585.
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, advantage=advantage)
    check_number("ratio_max", ratio_max, 1, math.inf)
    logp, logp_old, cost = on_mask(mask, logp, logp_old.detach(), -advantage.detach())
    ratio = (logp.detach() - logp_old).exp()
    loss = ratio.clamp(max=ratio_max) * cost * logp
    return TokenLoss(loss, {"ratio": metric(ratio, mask), "clip_high": metric(ratio > ratio_max, mask)})


def _sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Each token's log-ratio with the value of its sequence's mean and the derivative of its own."""
    mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.detach() + (log_ratio - log_ratio.detach())

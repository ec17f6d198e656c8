"""Trust regions: surrogates that ask how far a distribution has moved, not by which ratio a token has."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import token_loss, without_advantage
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["ce_gppo", "dppo", "drpo"]


@token_loss(idle=without_advantage, weighs_itself=True)
def dppo(
    logp: Tensor,
    logp_gen: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    distance: Tensor | None = None,
    threshold: float = 0.2,
    ratio_max: float = 20.0,
) -> TokenLoss:
    """Policy gradient that drops a token once the policy has moved too far from the sampler there.

        pₜ = exp(logpₜ), qₜ = exp(logp_genₜ), ρₜ = pₜ/qₜ
        dₜ = |pₜ - qₜ|, or the exact distance of the two distributions at t
        Lₜ = 0                                                   where dₜ > threshold and Aₜ·(pₜ - qₜ) > 0
             -stop_gradient(min(ρₜ, ratio_max))·Aₜ·logpₜ         elsewhere

    A rare token may triple its probability, while a likely one may not move by more than 0.2; the ratio of
    ``ppo_clip`` has it the other way round. A token that would move back is never dropped.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_gen: the same as the sampler reported them, for the distribution it really sampled from, nats,
            ``[B, T]``. Receives no gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        distance: of the policy's and the sampler's next-token distributions over the whole vocabulary, at least
            0, ``[B, T]``: total variation, or a KL divergence in nats. Receives no gradient. None = the
            sampled token's |p - q|, which never exceeds the total variation.
        threshold: largest distance, in its own unit, in [0, inf].
        ratio_max: largest weight, in [1, inf].

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; its value has no meaning of its
        own. Metrics, over tokens: ``ratio`` before bounding, ``distance``, and ``clip_low``, ``clip_high``, the
        bad and the good tokens that were dropped.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Gradient.* ``-dL/dlogp = min(ρ, ratio_max)·A`` where not dropped. With neither bound its mean over the
        sampler's tokens is the gradient of the policy's expected advantage at each prefix.

        *Sampler.* The ratio is to the sampler and corrects for it; importance weights are not multiplied in a
        second time (``Declaration.weighs_itself``).

        *Against released code.* Stable-RL and verl (``dppo_tv``) drop by |p - q| > 0.2 and bound the weight at
        20, as here; ``dppo_kl`` takes the KL between the two coins "this token or not", which is below the
        exact KL. prime-rl differentiates the unbounded ratio, which is the same gradient, and adds 1e-3 times
        the squared log-ratio. The exact distance over the vocabulary is in none of them: it sees what the
        other tokens did. Total variation drops every token that |p - q| drops at the same threshold; a KL of
        0.08 nats keeps the total variation below 0.2 (Pinsker).

    Example:
        The second token has gained 0.3, past 0.2; the third has too, but its advantage pulls it back.

        >>> import torch
        >>> from klent.objectives import dppo
        >>> logp = torch.tensor([[0.03, 0.8, 0.8]]).log().requires_grad_()
        >>> logp_gen = torch.tensor([[0.01, 0.5, 0.5]]).log()
        >>> out = dppo(logp, logp_gen, torch.tensor([[1.0, 1.0, -1.0]]), torch.ones(1, 3, dtype=torch.bool))
        >>> -torch.autograd.grad(out.loss.sum(), logp)[0]
        tensor([[ 3.0000,  0.0000, -1.6000]])

    References:
        Qi et al., Rethinking the Trust Region in LLM Reinforcement Learning, 2026, arXiv:2602.04879.
    """
    check_number("threshold", threshold, 0, math.inf)
    logp, advantage, ratio, away, measure = _move(logp, logp_gen, advantage, mask, distance, ratio_max)
    dropped = (measure > threshold) & (away > 0)
    weight = torch.where(dropped, 0.0, ratio.clamp(max=ratio_max))
    return TokenLoss(
        -weight * advantage * logp,
        {
            "ratio": metric(ratio, mask),
            "distance": metric(measure, mask),
            "clip_low": metric(dropped & (advantage < 0), mask),
            "clip_high": metric(dropped & (advantage > 0), mask),
        },
    )


@token_loss(idle=without_advantage, weighs_itself=True)
def drpo(
    logp: Tensor,
    logp_gen: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    distance: Tensor | None = None,
    threshold: float = 0.2,
    ratio_max: float = 20.0,
) -> TokenLoss:
    """Policy gradient that fades as the policy leaves the sampler, and turns back past the threshold.

        p, q, ρ and d as of ``dppo``
        Lₜ = -stop_gradient(min(ρₜ, ratio_max)·(1 - sign(Aₜ·(pₜ - qₜ))·dₜ/threshold))·Aₜ·logpₜ

    Where ``dppo`` lets a token go, this one pulls it: at the threshold the gradient is 0, beyond it its sign is
    reversed, and a token that moved the wrong way is pushed the harder.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_gen: the same as the sampler reported them, nats, ``[B, T]``. Receives no gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        distance: as of ``dppo``, ``[B, T]``. Receives no gradient.
        threshold: the distance at which the gradient is 0, in its own unit, in (0, inf].
        ratio_max: largest ratio, in [1, inf].

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; its value has no meaning of its
        own. Metrics, over tokens: ``ratio`` before bounding, ``distance``, and ``turned``, the tokens past the
        threshold, whose gradient is reversed.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *The paper's* is the form without ``distance`` and without ``ratio_max``: there this is the gradient of
        ``-ρ·A + |A|·q·(ρ - 1)²/(2·threshold)``, whose mean over the sampler's tokens is minus the expected
        advantage plus ``Σ |A|·(p - q)²/(2·threshold)``, exactly. Two things are of this library: the exact
        ``distance`` in place of |p - q|, which keeps the weight and is the gradient of no such sum, and the
        bound on the ratio, as of ``dppo``.

        *Threshold.* The released code has 12.5, at which the factor stays above 0.92, as |p - q| is at most 1;
        the default here is that of ``dppo``, whose region it smooths.

    Example:
        The factors are 1 - 0.1/0.2, 1 - 0.3/0.2 and 1 + 0.3/0.2.

        >>> import torch
        >>> from klent.objectives import drpo
        >>> logp = torch.tensor([[0.5, 0.8, 0.8]]).log().requires_grad_()
        >>> logp_gen = torch.tensor([[0.4, 0.5, 0.5]]).log()
        >>> out = drpo(logp, logp_gen, torch.tensor([[1.0, 1.0, -1.0]]), torch.ones(1, 3, dtype=torch.bool))
        >>> -torch.autograd.grad(out.loss.sum(), logp)[0]
        tensor([[ 0.6250, -0.8000, -4.0000]])

    References:
        Yao et al., Rethinking the Divergence Regularization in LLM RL, 2026, arXiv:2606.09821.
        Xie et al., Simple Policy Optimization (the same penalty in ratios), 2025.
    """
    check_number("threshold", threshold, 0, math.inf, ends="(]")
    logp, advantage, ratio, away, measure = _move(logp, logp_gen, advantage, mask, distance, ratio_max)
    factor = torch.where(away == 0, 1.0, 1 - away.sign() * measure / threshold)
    return TokenLoss(
        -ratio.clamp(max=ratio_max) * factor * advantage * logp,
        {
            "ratio": metric(ratio, mask),
            "distance": metric(measure, mask),
            "turned": metric(factor < 0, mask),
        },
    )


@token_loss(idle=without_advantage)
def ce_gppo(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    keep_low: float = 0.75,
    keep_high: float = 1.0,
) -> TokenLoss:
    """``ppo_clip`` whose clipped tokens keep a bounded gradient.

        ρₜ = exp(logpₜ - logp_oldₜ)
        wₜ = keep_low·(1 - clip_low)      where Aₜ < 0 and ρₜ < 1 - clip_low
             keep_high·(1 + clip_high)    where Aₜ > 0 and ρₜ > 1 + clip_high
             ρₜ                           elsewhere
        ∇Lₜ = -wₜ·Aₜ·∇logpₜ

    Good tokens past the bound hold entropy up while they are rare, bad ones lower it: the two weights trade the
    one for the other, where ``ppo_clip`` drops both.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        clip_low: how far the ratio of a bad token may fall below 1, in [0, 1].
        clip_high: how far the ratio of a good token may rise above 1, in [0, inf).
        keep_low: share of the bound's gradient that a bad token past it keeps, in [0, inf); the paper's β₁.
        keep_high: the same for a good token, in [0, inf); the paper's β₂.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; its value is -w·A. Metrics, over
        tokens: ``ratio``, and ``clip_low``, ``clip_high``, the tokens past a bound.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Gradient.* With both shares 0 it is that of ``ppo_clip``; with both 1 that of ``cispo`` whose weight is
        bounded below as well, each on the side where its advantage would clip.

        *Released settings.* keep_low 0.5 for 1.5B parameters and 0.75 for 7B, keep_high 1.

    Example:
        Ratios 1.5 and 0.5 are past the bounds 1.28 and 0.8; the bad token keeps 0.75 of 0.8.

        >>> import torch
        >>> from klent.objectives import ce_gppo
        >>> logp_old = torch.tensor([[0.2, 0.2]]).log()
        >>> logp = torch.tensor([[0.3, 0.1]]).log().requires_grad_()
        >>> out = ce_gppo(logp, logp_old, torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]]))
        >>> -torch.autograd.grad(out.loss.sum(), logp)[0]
        tensor([[ 1.2800, -0.6000]])

    References:
        Su et al., CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization, 2025,
        arXiv:2509.20712.
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, advantage=advantage)
    check_number("clip_low", clip_low, 0, 1)
    check_number("clip_high", clip_high, 0, math.inf, ends="[)")
    check_number("keep_low", keep_low, 0, math.inf, ends="[)")
    check_number("keep_high", keep_high, 0, math.inf, ends="[)")
    logp, logp_old, advantage = on_mask(mask, logp, logp_old.detach(), advantage.detach())
    ratio = (logp.detach() - logp_old).exp()
    low = (advantage < 0) & (ratio < 1 - clip_low)
    high = (advantage > 0) & (ratio > 1 + clip_high)
    weight = torch.where(low, keep_low * (1 - clip_low), ratio)
    weight = torch.where(high, keep_high * (1 + clip_high), weight)
    cost = torch.where(advantage == 0, 0.0, -weight * advantage)  # and not inf·0 where a ratio overflows
    (loss,) = on_mask(mask, cost * (1 + (logp - logp.detach())))
    return TokenLoss(
        loss, {"ratio": metric(ratio, mask), "clip_low": metric(low, mask), "clip_high": metric(high, mask)}
    )


def _move(
    logp: Tensor,
    logp_gen: Tensor,
    advantage: Tensor,
    mask: Tensor,
    distance: Tensor | None,
    ratio_max: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each token, 0 off the mask: logp, advantage, ratio, A·(p - q), and the distance."""
    given = {} if distance is None else {"distance": distance}
    check_tokens(mask, logp=logp, logp_gen=logp_gen, advantage=advantage, **given)
    check_number("ratio_max", ratio_max, 1, math.inf)
    logp, logp_gen, advantage = on_mask(mask, logp, logp_gen.detach(), advantage.detach())
    moved = logp.detach().exp() - logp_gen.exp()
    measure = moved.abs() if distance is None else on_mask(mask, distance.detach())[0]
    return logp, advantage, (logp.detach() - logp_gen).exp(), advantage * moved, measure

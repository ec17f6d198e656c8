"""Covariance of log-probability and advantage: the tokens that spend entropy, and updates that spare it."""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives.checks import check_choice, check_chosen, check_number, check_tokens
from klent.objectives.entropy import token_covariance
from klent.objectives.kinds import selector, token_loss
from klent.objectives.kl import kl_in_loss
from klent.objectives.masking import drawn, largest, metric, on_mask, share
from klent.objectives.surrogate import ppo_clip
from klent.objectives.types import TokenLoss

__all__ = ["clip_cov", "clip_cov_tokens", "kl_cov", "kl_cov_tokens"]


@selector
def clip_cov_tokens(
    logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random few of the tokens with a large covariance: those that Clip-Cov leaves out.

        c = token_covariance(logp, advantage, mask)
        S = ⌈fraction·N⌉ tokens drawn at random from those with low <= cₜ <= high;   N tokens on the mask

    Leaving out a few of the tokens that spend entropy fastest is enough to keep it; drawing them, and sparing
    the most extreme, keeps the update from losing all that it learns from.

    Args:
        logp: log-probabilities of the sampled tokens, nats, ``[B, T]``. Receives no gradient.
        advantage: one number per token, ``[B, T]``, in units of reward.
        mask: True on the tokens to choose from, ``[B, T]`` bool.
        fraction: share of the tokens *on the mask* to choose, in (0, 1].
        low: smallest covariance, nats times units of reward.
        high: largest covariance, at least ``low``.
        generator: source of the draw, on the device of ``mask``; None is torch's own.

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask: ⌈fraction·N⌉, or every eligible
        one if there are fewer.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ, ``fraction`` is outside (0, 1], or ``high`` is below ``low``.

    Note:
        *Batch dependence.* Means, band and count are taken over the whole call: choose before cutting a
        batch. On the CPU the draw depends on the tokens on the mask and their order, not on the padding.

        *Scale.* The band is in units of reward: 1 to 5 is meant for advantages divided by their group's
        deviation.

        *Against released code.* There the count is rounded down, but to at least one, of each micro-batch;
        and tokens that PPO has already clipped are not drawn. For the second, take them out of the mask
        here.

    Example:
        Of the four covariances 2, 0.5, 0.5, 2 two are in the band, and ⌈0.25·4⌉ = 1 of them is drawn.

        >>> import torch
        >>> from klent.objectives import clip_cov_tokens
        >>> logp, advantage = torch.tensor([[-1.0, -2.0, -4.0, -5.0]]), torch.tensor([[1.0, 0.5, -0.5, -1.0]])
        >>> generator = torch.Generator().manual_seed(0)
        >>> mask = torch.tensor([[True, True, True, True]])
        >>> clip_cov_tokens(logp, advantage, mask, fraction=0.25, generator=generator)
        tensor([[ True, False, False, False]])

    References:
        Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025,
        arXiv:2505.22617 (Clip-Cov).
    """
    covariance = token_covariance(logp, advantage, mask)
    check_number("fraction", fraction, 0, 1, ends="(]")
    check_number("low", low, -math.inf, math.inf)
    check_number("high", high, low, math.inf)
    eligible = mask & (covariance >= low) & (covariance <= high)
    return largest(drawn(mask, generator), eligible, share(fraction, mask.sum()))


@selector
def kl_cov_tokens(logp: Tensor, advantage: Tensor, mask: Tensor, *, fraction: float = 2e-3) -> Tensor:
    """The tokens with the largest covariance: those that KL-Cov holds back.

        c = token_covariance(logp, advantage, mask)
        S = the ⌈fraction·N⌉ tokens of largest cₜ among the N on the mask

    Likely and good, or unlikely and bad: the two cases in which a plain gradient step lowers entropy fastest.

    Args:
        logp: log-probabilities of the sampled tokens, nats, ``[B, T]``. Receives no gradient.
        advantage: one number per token, ``[B, T]``; only the order of c matters, so any scale.
        mask: True on the tokens to choose from, ``[B, T]`` bool.
        fraction: share to choose, in (0, 1]; the paper has 2e-3 for 7B and 2e-4 for 32B parameters.

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask: at least one if the mask has any.
        Of equal covariances the earlier token (by row, then column) is chosen.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``fraction`` not a number.
        ValueError: shapes differ or ``fraction`` is outside (0, 1].

    Note:
        *Batch dependence.* Means and ranks are over the whole call: choose before cutting a batch.

        *Against released code.* There the count is rounded down, but to at least one, of each micro-batch.
        The authors' ``k_percent`` is in percent, verl's ``kl_cov_ratio`` a fraction.

    Example:
        The covariances are 2, 0.5, 0.5 and 3.

        >>> import torch
        >>> from klent.objectives import kl_cov_tokens
        >>> logp, advantage = torch.tensor([[-1.0, -2.0, -4.0, -5.0]]), torch.tensor([[1.0, 0.5, -0.5, -1.0]])
        >>> kl_cov_tokens(logp, 1.5 * advantage, torch.tensor([[True, True, True, True]]), fraction=0.5)
        tensor([[ True, False, False,  True]])

    References:
        Cui et al., 2025, arXiv:2505.22617 (KL-Cov).
    """
    covariance = token_covariance(logp, advantage, mask)
    check_number("fraction", fraction, 0, 1, ends="(]")
    return largest(covariance, mask, share(fraction, mask.sum()))


def _unpushed_or_dropped(advantage: Tensor, dropped: Tensor, **_: object) -> Tensor:
    return (advantage == 0) | dropped


def _unpushed_and_unheld(advantage: Tensor, penalised: Tensor, coef: float, **_: object) -> Tensor:
    unpushed = advantage == 0
    return unpushed if coef == 0 else unpushed & ~penalised


@token_loss(idle=_unpushed_or_dropped)
def clip_cov(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    dropped: Tensor,
    clip_low: float = 1.0,
    clip_high: float = 1.0,
) -> TokenLoss:
    """Clipped policy gradient without the tokens that Clip-Cov drops.

        Lₜ = 0 where dropped, else ppo_clip's

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        dropped: True on the tokens to leave out, ``[B, T]`` bool, as ``clip_cov_tokens`` returns it.
        clip_low: as in ``ppo_clip``, in [0, 1].
        clip_high: as in ``ppo_clip``, in [0, inf]; 1 and 1, the paper's, bind only above twice the old
            probability.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask and where dropped, not averaged. Metrics:
        ``dropped``, over the mask; ``ratio``, ``clip_low`` and ``clip_high``, over the tokens kept.

    Raises:
        TypeError: ``mask`` or ``dropped`` is not bool, another tensor not floating point, or a bound not a
            number.
        ValueError: shapes differ or a bound is out of range.

    Note:
        *Gradient.* ``-dL/dlogp`` is 0 where dropped, else ``ppo_clip``'s.

        *Average.* Reduced with ``mask``, as in the released code, a dropped token still counts in the
        denominator.

    Example:
        >>> import torch
        >>> from klent.objectives import clip_cov
        >>> logp = torch.tensor([[0.3, 0.3]]).log()
        >>> old, advantage = torch.tensor([[0.2, 0.2]]).log(), torch.tensor([[1.0, 1.0]])
        >>> mask = torch.tensor([[True, True]])
        >>> clip_cov(logp, old, advantage, mask, dropped=torch.tensor([[True, False]])).loss
        tensor([[ 0.0000, -1.5000]])

    References:
        Cui et al., 2025, arXiv:2505.22617 (Clip-Cov).
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, advantage=advantage)
    check_chosen(mask, dropped=dropped)
    kept = ppo_clip(logp, logp_old, advantage, mask & ~dropped, clip_low=clip_low, clip_high=clip_high)
    return TokenLoss(kept.loss, {**kept.metrics, "dropped": metric(dropped, mask)})


@token_loss(idle=_unpushed_and_unheld)
def kl_cov(
    logp: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    penalised: Tensor,
    coef: float = 1.0,
    penalty: Literal["absolute", "kl"] = "absolute",
) -> TokenLoss:
    """Policy gradient that holds the tokens that KL-Cov penalises to their old probability.

        ρₜ = exp(logpₜ - logp_oldₜ)
        Lₜ = -ρₜ·Aₜ + coef·[t penalised]·Dₜ
        absolute   Dₜ = |logpₜ - logp_oldₜ|
        kl         Dₜ = ρₜ - 1 - (logpₜ - logp_oldₜ)

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        penalised: True on the tokens to hold back, ``[B, T]`` bool, as ``kl_cov_tokens`` returns it.
        coef: loss per nat, in [0, inf).
        penalty: ``absolute`` is what the authors' code and verl compute, ``kl`` what the paper writes.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metrics: ``ratio`` and
        ``penalised``, over the mask; ``penalty``, D over the penalised tokens, in nats, without ``coef``.

    Raises:
        TypeError: ``mask`` or ``penalised`` is not bool, another tensor not floating point, or ``coef`` not a
            number.
        ValueError: shapes differ, ``coef`` is out of range or ``penalty`` is unknown.

    Note:
        *Gradient.* ``-dL/dlogp = ρ·A - coef·sign(logp - logp_old)`` on penalised tokens with ``absolute``,
        ``ρ·A - coef·(ρ - 1)`` with ``kl``; ρ·A on the others. Nothing is clipped, here or in released code.
        Where ``logp == logp_old`` either penalty and its gradient are 0, so on the first step of an update
        this is ``reinforce``; from the second on, ``absolute`` pulls with full strength however near.

        *What it is.* Over all tokens from the old policy the mean of ``kl`` and of its derivative are those
        of KL(old ‖ policy). The mean of ``absolute`` is no KL: it is first order in the distance, where a
        KL is second order. Over selected tokens neither is the divergence of two distributions.

    Example:
        Ratios 0.5 and 1.5; only the first is penalised.

        >>> import torch
        >>> from klent.objectives import kl_cov
        >>> logp, old = torch.tensor([[0.2, 0.3]]).log(), torch.tensor([[0.4, 0.2]]).log()
        >>> advantage, mask = torch.tensor([[1.0, 1.0]]), torch.tensor([[True, True]])
        >>> chosen = torch.tensor([[True, False]])
        >>> kl_cov(logp, old, advantage, mask, penalised=chosen).loss
        tensor([[ 0.1931, -1.5000]])
        >>> kl_cov(logp, old, advantage, mask, penalised=chosen, penalty="kl").loss
        tensor([[-0.3069, -1.5000]])

    References:
        Cui et al., 2025, arXiv:2505.22617 (KL-Cov).
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, advantage=advantage)
    check_chosen(mask, penalised=penalised)
    check_number("coef", coef, 0, math.inf, ends="[)")
    check_choice("penalty", penalty, ("absolute", "kl"))
    free = ppo_clip(logp, logp_old, advantage, mask, clip_low=1, clip_high=math.inf)  # -ρ·A
    held = mask & penalised
    if penalty == "kl":  # tokens from the old policy, which is also what they are held to
        distance = kl_in_loss(logp, logp_old, held, coef=1.0, divergence="forward", logp_old=logp_old).loss
    else:
        new, old = on_mask(held, logp, logp_old.detach())
        distance = (new - old).abs()
    metrics = {
        "ratio": free.metrics["ratio"],
        "penalised": metric(penalised, mask),
        "penalty": metric(distance, held),
    }
    return TokenLoss(free.loss + coef * distance, metrics)

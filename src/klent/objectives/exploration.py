"""Policy gradients that look at each token's entropy: paid for it, or stopped by its change."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import token_loss, without_advantage
from klent.objectives.masking import metric, on_mask
from klent.objectives.surrogate import ppo_clip
from klent.objectives.types import TokenLoss

__all__ = ["entropy_ratio_clip", "entropy_shaped"]


@token_loss(idle=without_advantage)
def entropy_shaped(
    logp: Tensor,
    logp_old: Tensor,
    entropy: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.4,
    kappa: float = 2.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """Clipped policy gradient whose advantage grows with the token's entropy.

        ψₜ = min(alpha·max(Hₜ, 0), |Aₜ| / kappa)
        Lₜ = ppo_clip's with Aₜ + ψₜ

    A good token that was a fork is pushed up more, a bad one that was a fork down less.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        entropy: of the next-token distributions, nats, ``[B, T]``. Receives no gradient: this is no bonus.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        alpha: units of reward per nat, in [0, inf).
        kappa: above 1, so that no advantage changes its sign.
        clip_low: as in ``ppo_clip``.
        clip_high: as in ``ppo_clip``.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metrics: ``ppo_clip``'s, and
        ``shaping``, ψ over the mask, in units of reward.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Gradient.* ``-dL/dlogp = ρ·(A + ψ)`` where not clipped, else 0. ψ is never below 0, so the mean push
        is up: unlike a bonus, whose gradient raises entropy itself, this only weighs tokens.

        *No advantage.* Where A is 0, so is ψ: a group of equal rewards stays idle.

    Example:
        At ratio 1 the loss is minus the shaped advantage: 1 + 0.4·0.5, and -1 + min(0.8, 0.5).

        >>> import torch
        >>> from klent.objectives import entropy_shaped
        >>> logp, entropy = torch.tensor([[-1.0, -1.0]]), torch.tensor([[0.5, 2.0]])
        >>> advantage, mask = torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]])
        >>> entropy_shaped(logp, logp, entropy, advantage, mask).loss
        tensor([[-1.2000,  0.5000]])

    References:
        Cheng et al., Reasoning with Exploration: An Entropy Perspective, 2025, arXiv:2506.14758.
    """
    check_tokens(mask, entropy=entropy, advantage=advantage)
    check_number("alpha", alpha, 0, math.inf, ends="[)")
    check_number("kappa", kappa, 1, math.inf, ends="(]")
    entropy, known = on_mask(mask, entropy.detach(), advantage.detach())
    shaping = torch.minimum(alpha * entropy.clamp(min=0), known.abs() / kappa)
    out = ppo_clip(logp, logp_old, known + shaping, mask, clip_low=clip_low, clip_high=clip_high)
    return TokenLoss(out.loss, {**out.metrics, "shaping": metric(shaping, mask)})


@token_loss(idle=without_advantage)
def entropy_ratio_clip(
    logp: Tensor,
    logp_old: Tensor,
    entropy: Tensor,
    entropy_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    low: float = 0.05,
    high: float = 0.05,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """Clipped policy gradient that leaves a token alone once its distribution's entropy has moved far enough.

        Lₜ = ppo_clip's where (1 - low)·H_oldₜ <= Hₜ <= (1 + high)·H_oldₜ, else 0

    PPO's ratio watches the one token that was sampled; entropy watches the whole distribution it came from.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same under the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        entropy: of the next-token distributions of the policy being trained, nats, ``[B, T]``. Receives no
            gradient.
        entropy_old: the same of the policy at the start of the update, nats, ``[B, T]``. Receives no
            gradient.
        advantage: how much better than expected, ``[B, T]``, in units of reward. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        low: share of its entropy that a token may lose, in [0, 1].
        high: share that it may gain, in [0, inf].
        clip_low: as in ``ppo_clip``.
        clip_high: as in ``ppo_clip``.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask and where entropy left the band, not averaged.
        Metrics: ``entropy_fell`` and ``entropy_rose``, the tokens out of the band on either side, over the
        mask; ``ppo_clip``'s over the tokens kept.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a bound not a number.
        ValueError: shapes differ or a bound is out of range.

    Note:
        *Gradient.* ``-dL/dlogp`` is 0 out of the band, else ``ppo_clip``'s. Which side a token left on and
        the sign of its advantage do not matter: also a push that would bring it back is dropped.

        *First step.* Where the policy is still the old one nothing is out of the band; it takes several
        optimizer steps a batch for this to differ from ``ppo_clip``.

    Example:
        The entropies moved by +4% and -10%.

        >>> import torch
        >>> from klent.objectives import entropy_ratio_clip
        >>> logp, advantage, mask = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[True, True]])
        >>> new, old = torch.tensor([[1.04, 0.9]]), torch.ones(1, 2)
        >>> entropy_ratio_clip(logp, logp, new, old, advantage, mask).loss
        tensor([[-1.,  0.]])

    References:
        Entropy Ratio Clipping as a Soft Global Constraint for Stable Reinforcement Learning, 2025,
        arXiv:2512.05591.
    """
    check_tokens(mask, entropy=entropy, entropy_old=entropy_old)
    check_number("low", low, 0, 1)
    check_number("high", high, 0, math.inf)
    entropy, old = on_mask(mask, entropy.detach(), entropy_old.detach())
    fell, rose = entropy < (1 - low) * old, entropy - old > high * old  # never at high = inf: inf·0 is NaN
    kept = mask & ~(fell | rose)
    out = ppo_clip(logp, logp_old, advantage, kept, clip_low=clip_low, clip_high=clip_high)
    outside = {"entropy_fell": metric(fell, mask), "entropy_rose": metric(rose, mask)}
    return TokenLoss(out.loss, {**out.metrics, **outside})

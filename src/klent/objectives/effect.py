"""The exact first-order effect of one token's update on the entropy at its position, and what is made of it."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import estimator, selector, token_weight
from klent.objectives.masking import drawn, largest, on_mask, share

__all__ = ["clip_cov_exact_tokens", "entropy_effect", "kl_cov_exact_tokens", "steer_weight"]


@estimator
def entropy_effect(
    logp: Tensor, entropy: Tensor, collision: Tensor, collision_logp: Tensor, advantage: Tensor, mask: Tensor
) -> Tensor:
    """How much entropy one token's update adds at its position, per unit of step on the logits.

        Δz = η·A·(1[v = token] - p)                             the step of a softmax
        dH/dη = -A·(p_token·(log p_token + H) - Σᵥ pᵥ²·(log pᵥ + H))

    Negative: the update spends entropy. A covariance has only the first term, and without its probability: it
    knows neither how far the token can still move nor what its move takes from the others.

    Args:
        logp: log-probabilities of the sampled tokens, nats, ``[B, T]``. Receives no gradient.
        entropy: of each token's distribution, nats, ``[B, T]``. Receives no gradient.
        collision: Σᵥ pᵥ² of that distribution, ``[B, T]``.
        collision_logp: Σᵥ pᵥ²·log pᵥ, nats, ``[B, T]``; both from ``token_stats(collision=True)``.
        advantage: what the token's log-probability is pushed with, ``[B, T]``, in units of reward.
        mask: True on the tokens to look at, ``[B, T]`` bool.

    Returns:
        ``[B, T]``, nats per unit of η times units of reward, without gradient, 0 off the mask.

    Raises:
        TypeError: ``mask`` is not bool or another tensor not floating point.
        ValueError: shapes differ.

    Note:
        *Conditions.* Exact to first order for logits that only this token's gradient moves. In a network the
        updates of other tokens move them too, and an optimiser rescales the step: sign and order carry over as
        far as tokens do not interfere.

        *Against released code.* STEER's metric is A·(1 - p)·(log p + H), a covariance of one token
        A·(log p + H): both leave out what the push takes from the other tokens. ``klent claims entropy-effect``
        holds all three against the change itself.

    Example:
        Of probabilities 3/4 and 1/4, once the likely token is pushed up and once the unlikely one.

        >>> import torch
        >>> from klent.objectives import entropy_effect
        >>> p = torch.tensor([0.75, 0.25])
        >>> entropy, collision = -(p * p.log()).sum(), p.square().sum()
        >>> numbers = (x.expand(1, 2) for x in (entropy, collision, (p.square() * p.log()).sum()))
        >>> entropy_effect(p.log()[None], *numbers, torch.ones(1, 2), torch.tensor([[True, True]]))
        tensor([[-0.1030,  0.3090]])

    References:
        Hao et al., Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective, 2025,
        arXiv:2510.10150 (STEER), for the metric that this corrects.
    """
    check_tokens(
        mask,
        logp=logp,
        entropy=entropy,
        collision=collision,
        collision_logp=collision_logp,
        advantage=advantage,
    )
    values = (logp, entropy, collision, collision_logp, advantage)
    logp, entropy, collision, collision_logp, advantage = on_mask(mask, *(x.detach() for x in values))
    p = logp.exp()
    surprise = torch.where(p > 0, p * (logp + entropy), 0.0)
    return -advantage * (surprise - (collision_logp + entropy * collision))


@selector
def clip_cov_exact_tokens(
    logp: Tensor,
    entropy: Tensor,
    collision: Tensor,
    collision_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    fraction: float = 2e-4,
    pool: float = 2e-3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random few of the tokens whose update spends most entropy: Clip-Cov by the exact effect.

        S = ⌈fraction·N⌉ tokens drawn at random from the ⌈pool·N⌉ of lowest effect, among those where it is < 0

    Args:
        logp: as in ``entropy_effect``, nats, ``[B, T]``. Receives no gradient.
        entropy: as in ``entropy_effect``, nats, ``[B, T]``. Receives no gradient.
        collision: as in ``entropy_effect``, ``[B, T]``.
        collision_logp: as in ``entropy_effect``, nats, ``[B, T]``.
        advantage: one number per token, ``[B, T]``; only the order of effects matters, so any scale.
        mask: True on the tokens to choose from, ``[B, T]`` bool; N of them.
        fraction: share of the tokens on the mask to choose, in (0, 1].
        pool: share of the tokens on the mask to draw from, at least ``fraction``, in (0, 1].
        generator: source of the draw, on the device of ``mask``; None is torch's own.

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask and of negative effect.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ, ``fraction`` is outside (0, 1], or ``pool`` outside [fraction, 1].

    Note:
        *Batch dependence.* Ranks and counts are over the whole call: choose before cutting a batch.

        *Against Clip-Cov.* Its pool is a band of covariances, 1 to 5; an effect has another scale, which depends
        on the policy, so the pool is a share of the tokens.

    Example:
        >>> import torch
        >>> from klent.objectives import clip_cov_exact_tokens
        >>> p, mask = torch.tensor([[0.75, 0.25]]), torch.tensor([[True, True]])
        >>> numbers = (torch.full((1, 2), x) for x in (0.5623, 0.625, -0.2485))
        >>> clip_cov_exact_tokens(p.log(), *numbers, torch.ones(1, 2), mask, fraction=0.5, pool=1.0)
        tensor([[ True, False]])

    References:
        Cui et al., 2025, arXiv:2505.22617 (Clip-Cov).
    """
    effect = entropy_effect(logp, entropy, collision, collision_logp, advantage, mask)
    check_number("fraction", fraction, 0, 1, ends="(]")
    check_number("pool", pool, fraction, 1)
    eligible = largest(-effect, mask & (effect < 0), share(pool, mask.sum()))
    return largest(drawn(mask, generator), eligible, share(fraction, mask.sum()))


@selector
def kl_cov_exact_tokens(
    logp: Tensor,
    entropy: Tensor,
    collision: Tensor,
    collision_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    fraction: float = 2e-3,
) -> Tensor:
    """The tokens whose update spends most entropy: KL-Cov by the exact effect instead of a covariance.

        S = the ⌈fraction·N⌉ tokens of lowest effect among the N on the mask, where it is < 0

    Args:
        logp: as in ``entropy_effect``, nats, ``[B, T]``. Receives no gradient.
        entropy: as in ``entropy_effect``, nats, ``[B, T]``. Receives no gradient.
        collision: as in ``entropy_effect``, ``[B, T]``.
        collision_logp: as in ``entropy_effect``, nats, ``[B, T]``.
        advantage: one number per token, ``[B, T]``; only the order of effects matters, so any scale.
        mask: True on the tokens to choose from, ``[B, T]`` bool.
        fraction: share to choose, in (0, 1].

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask and of negative effect. Of equal effects
        the earlier token (by row, then column) is chosen.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``fraction`` not a number.
        ValueError: shapes differ or ``fraction`` is outside (0, 1].

    Note:
        *Batch dependence.* Ranks are over the whole call: choose before cutting a batch.

    Example:
        >>> import torch
        >>> from klent.objectives import kl_cov_exact_tokens
        >>> p, mask = torch.tensor([[0.75, 0.25]]), torch.tensor([[True, True]])
        >>> numbers = (torch.full((1, 2), x) for x in (0.5623, 0.625, -0.2485))
        >>> kl_cov_exact_tokens(p.log(), *numbers, torch.tensor([[1.0, -1.0]]), mask, fraction=0.5)
        tensor([[False,  True]])

    References:
        Cui et al., 2025, arXiv:2505.22617 (KL-Cov).
    """
    effect = entropy_effect(logp, entropy, collision, collision_logp, advantage, mask)
    check_number("fraction", fraction, 0, 1, ends="(]")
    return largest(-effect, mask & (effect < 0), share(fraction, mask.sum()))


@token_weight
def steer_weight(
    logp: Tensor,
    entropy: Tensor,
    collision: Tensor,
    collision_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    logp_old: Tensor | None = None,
    lowest: float = 0.8,
    smallest: float = 0.02,
) -> Tensor:
    """Weights that spare entropy where an update would change it most: STEER by the exact effect.

        Ω = ρ·effect,   ρ = exp(logp - logp_old)
        w = exp(-k·|Ω|),   k = -log(lowest) / max(max|Ω|, smallest)

    The token that would change entropy most, up or down, keeps ``lowest`` of its update; others keep more.

    Args:
        logp: as in ``entropy_effect``, nats, ``[B, T]``. Receives no gradient.
        entropy: as in ``entropy_effect``, nats, ``[B, T]``. Receives no gradient.
        collision: as in ``entropy_effect``, ``[B, T]``.
        collision_logp: as in ``entropy_effect``, nats, ``[B, T]``.
        advantage: one number per token, ``[B, T]``, in units of reward.
        mask: True on the tokens that are trained, ``[B, T]`` bool.
        logp_old: log-probabilities at the start of the update, nats, ``[B, T]``; None for ρ = 1.
        lowest: weight of the token of largest effect, in (0, 1]; 1 weighs nothing.
        smallest: largest effect below which weights are not spread over the whole range, > 0.

    Returns:
        ``[B, T]`` in [lowest, 1], without gradient, 0 off the mask.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Batch dependence.* The maximum is over the whole call: weigh before cutting a batch.

        *Against released code.* There Ω is ρ·A·(1 - p)·(log p + H), and the maximum is over the micro-batch, so
        that weights depend on how a step is cut.

    Example:
        >>> import torch
        >>> from klent.objectives import steer_weight
        >>> p, mask = torch.tensor([[0.75, 0.25]]), torch.tensor([[True, True]])
        >>> numbers = (torch.full((1, 2), x) for x in (0.5623, 0.625, -0.2485))
        >>> steer_weight(p.log(), *numbers, torch.ones(1, 2), mask)
        tensor([[0.9283, 0.8000]])

    References:
        Hao et al., Rethinking Entropy Interventions in RLVR: An Entropy Change Perspective, 2025,
        arXiv:2510.10150 (STEER).
    """
    effect = entropy_effect(logp, entropy, collision, collision_logp, advantage, mask)
    check_number("lowest", lowest, 0, 1, ends="(]")
    check_number("smallest", smallest, 0, math.inf, ends="()")
    if logp_old is not None:
        check_tokens(mask, logp_old=logp_old)
        now, old = on_mask(mask, logp.detach(), logp_old.detach())
        effect = effect * (now - old).exp()
    size = effect.abs()
    most = size.max().clamp(min=smallest) if size.numel() else size.sum()
    return torch.where(mask, torch.exp(math.log(lowest) * size / most), 0.0)

"""Preferences that follow regret: how far each choice fell short, given the policy that made it."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from klent.objectives.checks import check_choice, check_number, check_tokens
from klent.objectives.kinds import declare, pair_loss
from klent.objectives.masking import on_mask

__all__ = ["cpl", "policy_labeled_preference"]


Label = Literal["expected", "realised", "pseudo"]


def _label_needs(label: Label, **_: object) -> tuple[str, ...]:
    """The KLs of both sides, but for the label that is made of the policy's own numbers."""
    return () if label == "pseudo" else ("kl_chosen", "kl_rejected")


@declare("pair_loss", needs=_label_needs)
def policy_labeled_preference(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    mask_chosen: Tensor,
    mask_rejected: Tensor,
    *,
    kl_chosen: Tensor | None = None,
    kl_rejected: Tensor | None = None,
    label: Label = "expected",
    alpha: float = 0.1,
    gamma: float = 1.0,
    rejected_weight: float = 1.0,
) -> Tensor:
    """Preference learning that knows which policy produced each trajectory: PPL.

        S = alpha·Σₜ gammaᵗ·(logpₜ - Fₜ),   L = -log σ(S_chosen - rejected_weight·S_rejected)
        expected   Fₜ = E[Σ_{l>t} gammaˡ⁻ᵗ·KLₗ | sₜ, aₜ], the mean over what the behaviour policy does next
        realised   Fₜ = Σ_{l>t} gammaˡ⁻ᵗ·KLₗ, along the trajectory itself, so that S has t·gammaᵗ·KLₜ
        pseudo     realised, with KLₗ = -logpₗ: a behaviour policy sure of what it did, so no label is needed
        KLₗ = KL(behaviour(·|sₗ) ‖ policy(·|sₗ))

    For the optimal policy of a problem with entropy bonus ``alpha``, logp - F times ``alpha`` is minus the
    regret of a choice, Q of the behaviour policy minus the optimal V: a good choice is not blamed for what a
    bad policy did afterwards, and luck is not taken for skill.

    Args:
        logp_chosen: log-probabilities of the preferred trajectory's actions under the policy being trained,
            nats, ``[B, T]``. Receives the gradient.
        logp_rejected: the same of the other trajectory, ``[B, T']``. Receives the gradient.
        mask_chosen: True on its actions, ``[B, T]`` bool. t counts them from 0.
        mask_rejected: the same of the other, ``[B, T']``.
        kl_chosen: nats, ``[B, T]``: Fₜ itself for ``expected``, KLₜ for ``realised``, None for ``pseudo``.
            Receives the gradient, which holds the policy to the behaviour policy there.
        kl_rejected: the same of the other, ``[B, T']``; there it is driven away.
        label: what is known of the behaviour policy.
        alpha: temperature, in (0, inf).
        gamma: discount per action, in [0, 1].
        rejected_weight: CPL's conservative bias λ, in (0, 1]; 1 is the model above.

    Returns:
        ``[B]``, not averaged.

    Raises:
        TypeError: a mask is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes do not fit, a setting is out of range, or the KLs are missing (or given to
            ``pseudo``).

    Note:
        *Exactness.* Only ``expected`` is the model. ``realised`` puts one sample of a mean inside the
        sigmoid, an error in a regressor: it may do worse than no KL at all. ``pseudo`` makes S =
        alpha·Σ (t+1)·gammaᵗ·logpₜ, and is badly off where the behaviour policy is random. All three suppose
        labels that follow regret; for labels that follow the optimal advantage the model is ``cpl``.

        *Where F comes from.* With full distributions at hand KLₗ is ``categorical_kl`` or ``gaussian_kl``;
        its mean over continuations needs a model of the environment, or rollouts of the behaviour policy.

    Example:
        >>> import torch
        >>> from klent.objectives import policy_labeled_preference
        >>> chosen, rejected = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -1.0]])
        >>> mask = torch.tensor([[True, True]])
        >>> kl, none = torch.tensor([[0.3, 0.5]]), torch.zeros(1, 2)
        >>> policy_labeled_preference(  # the later KL counts against the first choice: S = -2 - 0.5
        ...     chosen, rejected, mask, mask, kl_chosen=kl, kl_rejected=none, label="realised", alpha=1.0)
        tensor([0.9741])

    References:
        Cho et al., Policy-labeled Preference Learning: Is Preference Enough for RLHF?, 2025,
        arXiv:2505.06273.
    """
    check_choice("label", label, ("expected", "realised", "pseudo"))
    _check_settings(alpha, gamma, rejected_weight)
    chosen = _future("chosen", logp_chosen, kl_chosen, mask_chosen, label)
    rejected = _future("rejected", logp_rejected, kl_rejected, mask_rejected, label)
    return _prefer(
        alpha * _score(logp_chosen, chosen, mask_chosen, gamma),
        alpha * _score(logp_rejected, rejected, mask_rejected, gamma),
        rejected_weight,
    )


@pair_loss
def cpl(
    logp_chosen: Tensor,
    logp_rejected: Tensor,
    mask_chosen: Tensor,
    mask_rejected: Tensor,
    *,
    alpha: float = 0.1,
    gamma: float = 1.0,
    rejected_weight: float = 1.0,
) -> Tensor:
    """Contrastive preference learning: preferences that follow the optimal advantage.

        S = alpha·Σₜ gammaᵗ·logpₜ,   L = -log σ(S_chosen - rejected_weight·S_rejected)

    ``policy_labeled_preference`` without its KL: as if every trajectory went on optimally after each choice.

    Args:
        logp_chosen: log-probabilities of the preferred trajectory's actions under the policy being trained,
            nats, ``[B, T]``. Receives the gradient.
        logp_rejected: the same of the other trajectory, ``[B, T']``. Receives the gradient.
        mask_chosen: True on its actions, ``[B, T]`` bool. t counts them from 0.
        mask_rejected: the same of the other, ``[B, T']``.
        alpha: temperature, in (0, inf).
        gamma: discount per action, in [0, 1].
        rejected_weight: the conservative bias λ, in (0, 1]: below 1 the loss also prefers that both
            trajectories be likely, and not only that they be ordered.

    Returns:
        ``[B]``, not averaged.

    Raises:
        TypeError: a mask is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes do not fit or a setting is out of range.

    Note:
        *Against released code.* There alpha is 0.1 and λ 0.5.

        With gamma 1, ``rejected_weight`` 1 and log-ratios to a reference in place of log-probabilities it is
        ``dpo`` with beta = alpha.

    Example:
        >>> import torch
        >>> from klent.objectives import cpl
        >>> mask = torch.tensor([[True, True]])
        >>> cpl(torch.tensor([[-0.5, -0.5]]), torch.tensor([[-1.0, -1.0]]), mask, mask, alpha=1.0)
        tensor([0.3133])

    References:
        Hejna et al., Contrastive Preference Learning: Learning from Human Feedback without RL, 2023,
        arXiv:2310.13639.
    """
    _check_settings(alpha, gamma, rejected_weight)
    check_tokens(mask_chosen, logp_chosen=logp_chosen)
    check_tokens(mask_rejected, logp_rejected=logp_rejected)
    return _prefer(
        alpha * _score(logp_chosen, torch.zeros_like(logp_chosen), mask_chosen, gamma),
        alpha * _score(logp_rejected, torch.zeros_like(logp_rejected), mask_rejected, gamma),
        rejected_weight,
    )


def _check_settings(alpha: float, gamma: float, rejected_weight: float) -> None:
    check_number("alpha", alpha, 0, math.inf, ends="()")
    check_number("gamma", gamma, 0, 1)
    check_number("rejected_weight", rejected_weight, 0, 1, ends="(]")


def _future(side: str, logp: Tensor, kl: Tensor | None, mask: Tensor, label: str) -> Tensor:
    """What stands beside each log-probability in the score: F, or its terms gathered where they arise."""
    check_tokens(mask, **{f"logp_{side}": logp})
    if label == "pseudo":
        if kl is not None:
            raise ValueError(
                f"kl_{side} is given with label='pseudo', expected None: it is taken to be -logp"
            )
        kl = -logp
    elif kl is None:
        what = "F, the mean of the later KLs" if label == "expected" else "the KL at each state"
        raise ValueError(
            f"kl_{side} is None with label={label!r}, expected {what}, [B, T]. Without a label for the "
            "behaviour policy take label='pseudo', or cpl"
        )
    check_tokens(mask, **{f"kl_{side}": kl})
    # each of the t earlier actions answers for the KL at t, all with the discount gammaᵗ
    return kl if label == "expected" else _position(mask).to(kl.dtype) * kl


def _position(mask: Tensor) -> Tensor:
    """0, 1, 2, ... on the tokens of ``mask``."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _score(logp: Tensor, future: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σₜ gammaᵗ·(logpₜ - Fₜ), ``[B]``."""
    logp, future = on_mask(mask, logp, future)
    discount = torch.pow(gamma, _position(mask).to(logp.dtype))
    return (discount * (logp - future)).sum(dim=1)


def _prefer(chosen: Tensor, rejected: Tensor, rejected_weight: float) -> Tensor:
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"logp_rejected has {len(rejected)} rows, expected {len(chosen)} as logp_chosen has: row by row "
            "the two are a pair"
        )
    return -logsigmoid(chosen - rejected_weight * rejected)

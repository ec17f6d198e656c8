"""KL divergence to a reference: estimators, and the two places where a penalty has a KL's gradient."""

import math
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

from klent.objectives.checks import check_choice, check_number, check_same_shape, check_tokens
from klent.objectives.kinds import estimator, token_loss, token_reward, without_coef
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["kl_estimate", "kl_in_loss", "kl_in_reward", "token_kl_loss"]


@estimator
def kl_estimate(logp: Tensor, logp_ref: Tensor, *, estimator: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Estimate KL(policy ‖ reference) from tokens that the policy sampled: for measuring, not for training.

        δ = logp - logp_ref
        k1 = δ                   unbiased, may be negative
        k2 = δ² / 2              biased, never negative
        k3 = exp(-δ) - 1 + δ     unbiased, never negative

    Averaged over samples this tells how far the policy is from the reference. An unbiased estimate need not
    have an unbiased gradient; the placements that have a KL's are ``kl_in_reward`` and ``kl_in_loss``.

    Args:
        logp: log-probabilities of the sampled tokens under the policy that sampled them, nats, any shape.
        logp_ref: the same tokens under the reference, nats, same shape.
        estimator: one of the three.

    Returns:
        One estimate per token, nats, same shape, differentiable in both. Not masked, not averaged.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes differ or ``estimator`` is unknown.

    Note:
        *Exactness.* For one token the mean of k1 and of k3 over the policy is the KL. Summed over the
        tokens of a sequence the mean of either is the KL between whole sequences, as that is the sum of the
        tokens' KLs over prefixes from the policy. k2 is right in neither sense. k3 varies without bound where
        the reference puts more on a token than the policy: for unit Gaussians at distance μ its variance is
        exp(μ²) - 1 - μ².

        *Against released code.* verl clamps δ at ±20 and k3 at ±10, so that beyond them there is no gradient;
        nothing is clamped here.

    Example:
        >>> import torch
        >>> from klent.objectives import kl_estimate
        >>> logp, logp_ref = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
        >>> kl_estimate(logp, logp_ref, estimator="k1")
        tensor([ 0.6931, -0.6931])
        >>> kl_estimate(logp, logp_ref, estimator="k3")
        tensor([0.1931, 0.3069])

    References:
        Schulman, Approximating KL Divergence, 2020, http://joschu.net/blog/kl-approx.html
    """
    check_same_shape(logp=logp, logp_ref=logp_ref)
    check_choice("estimator", estimator, ("k1", "k2", "k3"))
    delta = logp - logp_ref
    if estimator == "k1":
        return delta
    if estimator == "k2":
        return delta.square() / 2
    return torch.expm1(-delta) + delta


class Estimator(TypedDict, total=False):
    """What other trainers ask for in place of a divergence and a place; checked, and never needed."""

    estimator: str


@token_reward
def kl_in_reward(
    logp: Tensor, logp_ref: Tensor, mask: Tensor, *, coef: float, **refused: Unpack[Estimator]
) -> Tensor:
    """Penalty on the KL to the reference, paid out as a reward at each token.

        rₜ = -coef·(logpₜ - logp_refₜ)

    The exact way to hold a policy to its reference: through ``reward_to_go`` a token also answers for how
    far the tokens that it leads to are from the reference.

    Args:
        logp: log-probabilities of the sampled tokens under the policy that sampled them, nats, ``[B, T]``.
            Receives no gradient: a reward is a number.
        logp_ref: the same tokens under the reference, nats, ``[B, T]``.
        mask: True on the tokens of the completion, ``[B, T]`` bool.
        coef: reward per nat, in [0, inf).
        refused: ``estimator=`` is not needed; one other than ``k1`` is refused with the reason.

    Returns:
        Reward per token, ``[B, T]``, without gradient, 0 off the mask. Not summed over later tokens.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``coef`` not a number.
        ValueError: shapes differ, ``coef`` is out of range, or ``estimator`` is not ``k1``.

    Note:
        *Exactness.* On tokens from the policy itself, ``reinforce`` with ``reward_to_go(..., gamma=1)`` of
        this reward as advantage has as its mean, summed over a sequence, the gradient of ``coef·KL(policy ‖
        reference)`` between *whole sequences*. Without reward-to-go, or with gamma 0, it is only exact
        token by token, as ``kl_in_loss`` is. On tokens from an older policy, weighted by each token's own
        ratio (and ``logp`` the present policy's), it is exact for sequences of one token; beyond that the
        ratios of a token's neighbours are missing, in this as in any loss with ratios per token.

        *Reduction.* Exact is the sum over a sequence, so the average over a batch must be a constant's
        (``reduce_tokens(..., over="constant")``). A mean over each sequence's tokens divides the KL of a long
        sequence by more: in small worlds with a stop token a sixth of the gradient is then something else
        (docs/audit.md).

        *k2 and k3* in the reward are refused. Their gradient is second order in the distance to the
        reference, where the KL's is first order: there they hold nothing back, and further off they point
        elsewhere.

        *Against released code.* TRL's PPO pays k1 and offers k3; GRPO in TRL and verl has k3 in the loss.

    Example:
        >>> import torch
        >>> from klent.objectives import kl_in_reward, reward_to_go
        >>> logp, logp_ref = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([[0.25, 0.5]]).log()
        >>> mask = torch.tensor([[True, True]])
        >>> reward = kl_in_reward(logp, logp_ref, mask, coef=0.1)
        >>> reward
        tensor([[-0.0693,  0.0693]])
        >>> advantage = reward_to_go(reward, mask)

    References:
        Schulman et al., Equivalence Between Policy Gradients and Soft Q-Learning, 2017, arXiv:1704.06440.
        Tang and Munos, On a Few Pitfalls in KL Divergence Gradient Estimation for RL, 2025, arXiv:2506.09477.
    """
    check_tokens(mask, logp=logp, logp_ref=logp_ref)
    check_number("coef", coef, 0, math.inf, ends="[)")
    estimator = _only_estimator("kl_in_reward", refused) or "k1"
    if estimator != "k1":
        raise ValueError(
            f"estimator is {estimator!r}, expected 'k1': in the reward {estimator} has no restoring force "
            "near the reference, as its gradient is second order there. Call kl_in_reward(logp, logp_ref, "
            "mask, coef=...), or penalise in the loss: kl_in_loss(logp, logp_ref, mask, coef=...)"
        )
    logp, logp_ref = on_mask(mask, logp.detach(), logp_ref.detach())
    return coef * (logp_ref - logp)


@token_loss(idle=without_coef)
def kl_in_loss(
    logp: Tensor,
    logp_ref: Tensor,
    mask: Tensor,
    *,
    coef: float,
    divergence: Literal["reverse", "forward"] = "reverse",
    logp_old: Tensor | None = None,
    **refused: Unpack[Estimator],
) -> TokenLoss:
    """Penalty on the KL to the reference as a loss, exact token by token, on- and off-policy.

        δ = logp - logp_ref,   r = exp(-δ),   ρ = exp(logp - logp_old)
        reverse   L = coef·ρ·(r - 1 + δ)            dL/dlogp = coef·ρ·δ
        forward   L = coef·ρ·(r·log r - r + 1)      dL/dlogp = coef·ρ·(1 - r)

    The mean of L over sampled tokens is the divergence and the mean of its derivative is the divergence's
    gradient: KL(policy ‖ reference) for ``reverse``, KL(reference ‖ policy) for ``forward``. Reverse holds
    back what the policy adds to the reference; forward holds on to what it would lose, with a pull that grows
    without bound as a token becomes less likely than under the reference.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_ref: the same tokens under the reference, nats, ``[B, T]``. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        coef: loss per nat, in [0, inf).
        divergence: ``reverse`` or ``forward``.
        logp_old: the same tokens under the policy that they were sampled from, nats, ``[B, T]``, without
            gradient. None says that it is the policy being trained: ρ is 1.
        refused: ``estimator=`` is not needed; one that does not follow ``divergence`` is refused with the
            reason: ``k2`` follows the reverse KL, ``k3`` the forward one.

    Returns:
        ``TokenLoss``: ``loss`` in nats times ``coef``, ``[B, T]``, 0 off the mask, not averaged. Metric
        ``kl``: the divergence itself, nats per token, without ``coef``.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``coef`` not a number.
        ValueError: shapes differ, ``coef`` is out of range, or ``estimator`` is ``k1`` or that of the other
            divergence.

    Note:
        *Exactness.* Token by token only: the mean gradient is Σₜ E over prefixes from the sampling policy of
        ∇KL between next-token distributions, the prefixes taken as given. That a token changes what comes
        after it is left out, so it is not the gradient of the KL between sequences; ``kl_in_reward`` with
        ``reward_to_go`` is.

        *Estimators.* Sample by sample the reverse gradient is that of k2 times a constant ρ, and of k3
        times a differentiated ρ (DeepSeek-V3.2); the forward gradient that of k3 times a constant ρ.
        Without ρ none of them is right off-policy. k1 as a loss is refused: its derivative is 1, and the
        mean of ∇logp is 0. It does not lower entropy by itself, as is often said, but it is noise without a
        restoring force.

        *Second derivatives* are not available: the first is written out, because autograd would form it as a
        difference of numbers as large as r.

        *Against released code.* GRPO's penalty in TRL and verl is k3 as a loss, so it follows the forward KL.

    Example:
        >>> import torch
        >>> from klent.objectives import kl_in_loss
        >>> logp = torch.tensor([[0.5, 0.25]]).log().requires_grad_()
        >>> logp_ref, mask = torch.tensor([[0.25, 0.5]]).log(), torch.tensor([[True, True]])
        >>> for divergence in "reverse", "forward":
        ...     out = kl_in_loss(logp, logp_ref, mask, coef=1.0, divergence=divergence)
        ...     print(out.loss.detach(), torch.autograd.grad(out.loss.sum(), logp)[0])
        tensor([[0.1931, 0.3069]]) tensor([[ 0.6931, -0.6931]])
        tensor([[0.1534, 0.3863]]) tensor([[ 0.5000, -1.0000]])

    References:
        Tang and Munos, On a Few Pitfalls in KL Divergence Gradient Estimation for RL, 2025, arXiv:2506.09477.
        Rethinking KL Regularization in RLHF, 2025, arXiv:2510.01555.
    """
    logp_old = logp if logp_old is None else logp_old
    check_tokens(mask, logp=logp, logp_ref=logp_ref, logp_old=logp_old)
    check_number("coef", coef, 0, math.inf, ends="[)")
    check_choice("divergence", divergence, ("reverse", "forward"))
    if estimator := _only_estimator("kl_in_loss", refused):
        _check_loss_estimator(estimator, divergence)

    logp, logp_ref, logp_old = on_mask(mask, logp, logp_ref.detach(), logp_old.detach())
    delta = logp.detach() - logp_ref
    weight = (logp.detach() - logp_old).exp()
    r_minus_1 = torch.expm1(-delta)
    if divergence == "reverse":
        value = weight * (r_minus_1 + delta)
        slope = weight * delta
    else:
        value = weight * (-delta * delta.neg().exp() - r_minus_1)
        slope = -weight * r_minus_1
    loss = coef * (value + slope * (logp - logp.detach()))
    return TokenLoss(loss, {"kl": metric(value, mask)})


@token_loss(idle=without_coef)
def token_kl_loss(kl: Tensor, mask: Tensor, *, coef: float) -> TokenLoss:
    """Penalty on the exact KL of next-token distributions, the prefixes taken as given.

        Lₜ = coef·klₜ

    What ``kl_in_loss`` estimates from the sampled token, here over the whole vocabulary: the same mean, and none
    of the noise that comes from which token was drawn.

    Args:
        kl: divergence from the reference at each token, over the whole vocabulary
            (:func:`klent.head.divergence.token_divergence`), nats, ``[B, T]``. Receives the gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        coef: loss per nat, in [0, inf).

    Returns:
        ``TokenLoss``: ``loss`` in nats times ``coef``, ``[B, T]``, 0 off the mask, not averaged. Metric ``kl``:
        nats per token, without ``coef``.

    Raises:
        TypeError: ``mask`` is not bool, ``kl`` not floating point, or ``coef`` not a number.
        ValueError: shapes differ or ``coef`` is out of range.

    Note:
        *Exactness.* Token by token, over the prefixes that were sampled, whoever sampled them. That a token
        changes what comes after it is left out; ``sequence_kl_loss`` has it. On completions of the reference
        itself nothing is left out: with the forward KL, summed over a completion, this is the gradient of
        KL(reference ‖ policy) between whole sequences.

    Example:
        >>> import torch
        >>> from klent.objectives import token_kl_loss
        >>> token_kl_loss(torch.tensor([[0.1, 0.5]]), torch.tensor([[True, True]]), coef=2.0).loss
        tensor([[0.2000, 1.0000]])

    References:
        Agarwal et al., On-Policy Distillation of Language Models (GKD), 2023, arXiv:2306.13649.
    """
    check_tokens(mask, kl=kl)
    check_number("coef", coef, 0, math.inf, ends="[)")
    (kl,) = on_mask(mask, kl)
    (loss,) = on_mask(mask, coef * kl)
    return TokenLoss(loss, {"kl": metric(kl, mask)})


def _only_estimator(function: str, refused: Estimator) -> str | None:
    """The estimator asked for, if any; nothing else may be asked for."""
    for name in refused:
        if name != "estimator":
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    estimator = refused.get("estimator")
    if estimator is not None:
        check_choice("estimator", estimator, ("k1", "k2", "k3"))
    return estimator


def _check_loss_estimator(estimator: str, divergence: str) -> None:
    if estimator == "k1":
        raise ValueError(
            "estimator is 'k1', expected none: as a loss the mean gradient of k1 is zero, so that it adds "
            "noise and holds nothing back. Call kl_in_loss(logp, logp_ref, mask, coef=...), or put "
            "k1 in the reward: kl_in_reward(logp, logp_ref, mask, coef=...)"
        )
    follows = {"k2": "reverse", "k3": "forward"}[estimator]
    if follows != divergence:
        raise ValueError(
            f"estimator is {estimator!r} and divergence is {divergence!r}: as a loss {estimator} follows the "
            f"{follows} KL. For this one write divergence={follows!r}, for {divergence} drop estimator"
        )

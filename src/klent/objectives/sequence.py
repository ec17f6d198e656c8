"""KL divergence and entropy of whole sequences, as losses that are exact on- and off-policy."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from klent.objectives.checks import check_ids, check_number, check_tokens
from klent.objectives.kinds import token_loss, without_coef
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["sequence_entropy_loss", "sequence_kl_loss"]


@token_loss(idle=without_coef, whole_sequences=True)
def sequence_kl_loss(
    logp: Tensor,
    kl: Tensor,
    mask: Tensor,
    *,
    coef: float,
    logp_gen: Tensor | None = None,
    group: Tensor | None = None,
    baseline: Tensor | None = None,
    weight_max: float | None = None,
) -> TokenLoss:
    """KL divergence between whole sequences as a loss, exact on- and off-policy.

        wₜ = Πₛ<ₜ exp(logpₛ - logp_genₛ)          ratio of the prefix; the token's own ratio is not in it
        Fₜ = Σₛ>ₜ ( wₛ·klₛ - (wₛ₊₁ - wₛ)·bₛ )      what the tokens after t add
        ∇L = coef·Σₜ ( wₜ·∇klₜ + (Fₜ - wₜ₊₁·bₜ)·∇logpₜ )

    A token pays for its own divergence and for that of the tokens that it leads to. The mean over sequences
    of the sampler is the gradient of coef·KL(policy ‖ reference) between distributions over sequences,
    whichever policy sampled them: no ratio is missing and none is there twice.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        kl: KL(policy ‖ reference) of the next-token distributions at each token, over the whole vocabulary
            (:func:`klent.head.divergence.token_divergence`), nats, ``[B, T]``. Receives the gradient. With a
            forward or a skewed divergence in its place the loss is that, summed over prefixes of the policy.
        mask: True on the tokens of the completion, ``[B, T]`` bool. All of them: a token left out is missing
            in every ratio after it.
        coef: loss per nat, in [0, inf).
        logp_gen: the same tokens under the policy that sampled them, nats, ``[B, T]``, without gradient. None
            says that it is the policy being trained: all weights are 1.
        group: the prompt that each row answers, ``[B]`` integers. Given, and without ``baseline``, bₜ is the
            mean of Σₛ>ₜ klₛ over the other rows of the group that have a token at t. It is the sampler's future
            and not the policy's, without a weight and so without its noise: a baseline may be off.
        baseline: expected divergence of the tokens after each, given those before it, nats, ``[B, T]``: a
            critic's values. It may not depend on the row's own token t or later ones. Receives no gradient.
        weight_max: bound of wₜ, at least 1; None is no bound.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; its value is coef·wₜ·klₜ. Metrics,
        per sequence: ``sequence_kl``, the divergence between sequences, nats, without ``coef``;
        ``prefix_weight`` and ``prefix_weight_squared``, of the prefix before the last token, whose mean squared
        over mean of squares is the effective sample size. Per token: ``chi2``, the mean of ratio² - 1, which
        estimates χ².

    Raises:
        TypeError: ``mask`` is not bool, ``group`` not integers, another tensor not floating point, or a
            setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Exactness* is that of the sum over a row. Averaged with ``over="constant"`` the loss is coef·KL over
        the constant. Over ``tokens`` the divisor is the batch's count of tokens: a common factor, but one that
        depends on what was sampled, so that the direction is exact as the batch grows. Over ``sequences`` each
        row is divided by its own length and the result is the gradient of no divergence.

        *Baseline.* It changes no expectation, with ``weight_max`` or without: it is weighted by the prefix,
        bounded or not, times the token's own unbounded ratio. It takes the mean out of the future, and out of the
        noise of later ratios, whose mean is 1: (wₛ₊₁ - wₛ)·bₛ, the control variate of doubly robust estimators.

        *Weights.* E[wₜ²] = (1 + χ²)ᵗ where χ² is the policy's from the sampler at one token: 1e-3 gives 1.3 at
        256 tokens, 1e-2 gives 13. ``weight_max`` bounds the variance and leaves a bias in the future's share;
        the token's own divergence is not affected while its prefix is within the bound.

        *Batch dependence.* With ``group`` a row's loss depends on the other rows of its group, and on no others:
        groups must be whole.

        *Against released code.* TRL, verl, OpenRLHF and NeMo-RL penalise token by token, or with k1 in the
        reward, which is exact for sequences on-policy, with more variance, and is not off-policy.

    Example:
        On the way to a second token whose divergence is 0.5, the first token answers for it too:

        >>> import torch
        >>> from klent.objectives import sequence_kl_loss
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> kl, mask = torch.tensor([[0.1, 0.5]]), torch.tensor([[True, True]])
        >>> out = sequence_kl_loss(logp, kl, mask, coef=1.0)
        >>> out.loss.detach(), torch.autograd.grad(out.loss.sum(), logp)[0]
        (tensor([[0.1000, 0.5000]]), tensor([[0.5000, 0.0000]]))

    References:
        Amini, Vieira and Cotterell, Better Estimation of the KL Divergence Between Language Models (the
        on-policy case), 2025, arXiv:2504.10637.
        Jiang and Li, Doubly Robust Off-policy Value Evaluation for Reinforcement Learning, 2015, arXiv:1511.03722.
        A Comedy of Estimators (which leaves the off-policy case open), 2025, arXiv:2512.21852.
    """
    check_number("coef", coef, 0, math.inf, ends="[)")
    total = _sequence_total(logp, mask, "kl", kl, logp_gen, group, baseline, weight_max)
    return TokenLoss(coef * total.loss, {"sequence_kl": total.value, **total.metrics})


@token_loss(idle=without_coef, whole_sequences=True)
def sequence_entropy_loss(
    logp: Tensor,
    entropy: Tensor,
    mask: Tensor,
    *,
    coef: float,
    logp_gen: Tensor | None = None,
    group: Tensor | None = None,
    baseline: Tensor | None = None,
    weight_max: float | None = None,
) -> TokenLoss:
    """Entropy of whole sequences as something to lower or to raise, exact on- and off-policy.

        wₜ = Πₛ<ₜ exp(logpₛ - logp_genₛ),   Fₜ = Σₛ>ₜ ( wₛ·Hₛ - (wₛ₊₁ - wₛ)·bₛ )
        ∇L = coef·Σₜ ( wₜ·∇Hₜ + (Fₜ - wₜ₊₁·bₜ)·∇logpₜ )

    ``entropy_loss`` changes how unsure the policy is where it is; this one also where it goes: a token that
    leads to many continuations is made more likely, or less. Mind that longer sequences have more entropy.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        entropy: of that policy's next-token distributions, nats, ``[B, T]``. Receives the gradient.
        mask: True on the tokens of the completion, ``[B, T]`` bool; all of them.
        coef: loss per nat, any finite number; negative is a bonus.
        logp_gen: as of ``sequence_kl_loss``.
        group: as of ``sequence_kl_loss``.
        baseline: expected entropy of the tokens after each, given those before it, nats, ``[B, T]``.
        weight_max: as of ``sequence_kl_loss``.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; its value is coef·wₜ·Hₜ. Metrics:
        ``sequence_entropy``, nats per sequence, without ``coef``; the weights as of ``sequence_kl_loss``.

    Raises:
        TypeError: ``mask`` is not bool, ``group`` not integers, another tensor not floating point, or a
            setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Exactness, baseline, weights, batch dependence* are those of ``sequence_kl_loss``.

    Example:
        >>> import torch
        >>> from klent.objectives import sequence_entropy_loss
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> entropy, mask = torch.tensor([[0.1, 0.5]]), torch.tensor([[True, True]])
        >>> out = sequence_entropy_loss(logp, entropy, mask, coef=-0.1)
        >>> -torch.autograd.grad(out.loss.sum(), logp)[0]
        tensor([[0.0500, 0.0000]])

    References:
        Amini, Vieira and Cotterell, Better Estimation of the KL Divergence Between Language Models, 2025,
        arXiv:2504.10637; the same identity with -H in place of the KL.
    """
    check_number("coef", coef, -math.inf, math.inf, ends="()")
    total = _sequence_total(logp, mask, "entropy", entropy, logp_gen, group, baseline, weight_max)
    return TokenLoss(coef * total.loss, {"sequence_entropy": total.value, **total.metrics})


class _Total(NamedTuple):
    """The sum of a number per token over sequences: as a loss, as a metric, and the weights behind it."""

    loss: Tensor
    value: tuple[Tensor, Tensor]
    metrics: dict[str, tuple[Tensor, Tensor]]


def _sequence_total(
    logp: Tensor,
    mask: Tensor,
    name: str,
    value: Tensor,
    logp_gen: Tensor | None,
    group: Tensor | None,
    baseline: Tensor | None,
    weight_max: float | None,
) -> _Total:
    """``Σₜ value`` of the policy's sequences, whose gradient also goes through what is sampled."""
    logp_gen = logp if logp_gen is None else logp_gen
    given = {} if baseline is None else {"baseline": baseline}
    check_tokens(mask, logp=logp, **{name: value}, logp_gen=logp_gen, **given)
    if weight_max is not None:
        check_number("weight_max", weight_max, 1, math.inf)
    if group is not None:
        check_ids("group", group)
        if group.shape != mask.shape[:1]:
            raise ValueError(f"group has shape {list(group.shape)}, expected [{len(mask)}]: one id per row")

    logp, value, logp_gen = on_mask(mask, logp, value, logp_gen.detach())
    log_ratio = logp.detach() - logp_gen
    log_after = log_ratio.cumsum(dim=1)
    bound = math.inf if weight_max is None else math.log(weight_max)
    weight = (log_after - log_ratio).clamp(max=bound).exp()  # of the prefix before each token
    paid = weight * value.detach()
    cost = _later(paid)
    if baseline is not None or group is not None:
        after = weight * log_ratio.exp()  # the token's own ratio is not bounded: its mean score stays 0
        if baseline is None:
            assert group is not None
            baseline = _of_the_others(_later(value.detach()), mask, group)
        (baseline,) = on_mask(mask, baseline.detach())
        cost = _later(paid - (after - weight) * baseline) - after * baseline
    (loss,) = on_mask(mask, weight * value + cost * (logp - logp.detach()))
    sequences = mask.any(dim=1)
    last = torch.where(mask, weight, 0.0).gather(1, _last(mask)).squeeze(1)
    ratio_squared = torch.expm1(2 * log_ratio)
    return _Total(
        loss,
        (torch.where(mask, paid, 0.0).sum(), sequences.sum().to(paid.dtype)),
        {
            "prefix_weight": metric(last, sequences),
            "prefix_weight_squared": metric(last.square(), sequences),
            "chi2": metric(ratio_squared, mask),
        },
    )


def _later(values: Tensor) -> Tensor:
    """The sum over the columns after each."""
    return values.flip(1).cumsum(dim=1).flip(1) - values


def _of_the_others(future: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Mean future of the other rows of each row's group that have a token at t; 0 where there is none."""
    _, index = group.unique(return_inverse=True)
    grid = future.new_zeros(int(index.max()) + 1 if len(index) else 0, future.shape[1])

    def others(values: Tensor) -> Tensor:
        values = torch.where(mask, values, 0.0)
        return grid.index_add(0, index, values)[index] - values

    count = others(torch.ones_like(future))
    return torch.where(count > 0.5, others(future) / count.clamp_min(1.0), 0.0)


def _last(mask: Tensor) -> Tensor:
    """The column of each row's last token, ``[B, 1]``; 0 where it has none."""
    column = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    return torch.where(mask, column, 0).amax(dim=1, keepdim=True)

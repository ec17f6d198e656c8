"""Maximum likelihood: of given tokens, or of a given share of them."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_number, check_observed, check_tokens
from klent.objectives.kinds import token_loss
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["cross_entropy", "observation_loss", "uniform_cross_entropy", "weighted_cross_entropy"]


@token_loss()
def cross_entropy(logp: Tensor, mask: Tensor) -> TokenLoss:
    """Negative log-likelihood of given tokens: supervised fine-tuning.

        Lₜ = -logpₜ

    Every token is pushed up with the same strength.

    Args:
        logp: log-probabilities of the data's tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        mask: True where a token is trained on (the completion, not the prompt), ``[B, T]`` bool.

    Returns:
        ``TokenLoss``: ``loss`` in nats, ``[B, T]``, 0 off the mask, not averaged; no metrics.

    Raises:
        TypeError: ``mask`` is not bool or ``logp`` not floating point.
        ValueError: shapes differ.

    Note:
        *Gradient.* ``-dL/dlogp = 1`` on every token. On tokens that the policy itself has just sampled its
        mean is 0, so there it adds noise and nothing else.

    Example:
        >>> import torch
        >>> from klent.objectives import cross_entropy
        >>> logp = torch.tensor([[0.5, 0.25, 0.9]]).log()
        >>> cross_entropy(logp, torch.tensor([[True, True, False]])).loss
        tensor([[0.6931, 1.3863, 0.0000]])
    """
    check_tokens(mask, logp=logp)
    (loss,) = on_mask(mask, -logp)
    return TokenLoss(loss, {})


def _without_weight(observed: Tensor, coef: float, **_: object) -> Tensor:
    """``idle`` of a loss of observations: everywhere or nowhere."""
    return torch.full_like(observed, coef == 0)


@token_loss(idle=_without_weight)
def observation_loss(logp_observed: Tensor, observed: Tensor, *, coef: float) -> TokenLoss:
    """Negative log-likelihood of what an environment said: the policy learns to foresee it.

        Lₜ = -coef·logp_observedₜ,   on the tokens that the policy read between its turns

    Args:
        logp_observed: log-probability of each of those tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        observed: True where the environment said the token, ``[B, T]`` bool. Disjoint from the policy's actions.
        coef: weight of the term, in [0, inf).

    Returns:
        ``TokenLoss``: ``loss`` in nats, ``[B, T]``, 0 where nothing was observed, not averaged. Metric
        ``observation/loss``: nats per token observed, without ``coef``.

    Raises:
        TypeError: ``observed`` is not bool, ``logp_observed`` not floating point or ``coef`` not a number.
        ValueError: shapes differ or ``coef`` is out of range.

    Note:
        *In a recipe* an episode's sum joins the loss of its first trained action, so that every average stays
        one over actions: with ``reduce.over: tokens`` the term is coef·(Σ over observed tokens)/(actions).
        No importance weight multiplies it: the environment drew these tokens, whatever policy played.

        *Tokens.* The first ones of an observation are the chat template's, certain to follow; they are learnt in a
        few steps and then add nothing to the gradient, but to the mean.

    Example:
        >>> import torch
        >>> from klent.objectives import observation_loss
        >>> logp = torch.tensor([[0.0, 0.5, 0.25, 0.0]]).log()
        >>> observation_loss(logp, torch.tensor([[False, True, True, False]]), coef=0.1).loss
        tensor([[0.0000, 0.0693, 0.1386, 0.0000]])
    """
    check_observed(observed, logp_observed=logp_observed)
    check_number("coef", coef, 0, math.inf, ends="[)")
    (loss,) = on_mask(observed, -logp_observed)
    return TokenLoss(coef * loss, {"observation/loss": metric(loss, observed)})


@token_loss()
def weighted_cross_entropy(logp: Tensor, logp_dummy: Tensor, weight: Tensor, mask: Tensor) -> TokenLoss:
    """Cross-entropy that gives each token only a share of its mass, and the rest to a dummy action.

        Lₜ = -(wₜ·logpₜ + (1 - wₜ)·logp_dummyₜ)

    Where cross-entropy learns how often a token occurs, this learns how often it occurs times how good it is:
    trained to the end, p*(a) = w(a)·πᵦ(a) for the data's distribution πᵦ, and the dummy holds what is left.

    Args:
        logp: log-probabilities of the data's tokens, nats, ``[B, T]``. Receives the gradient.
        logp_dummy: log-probability, at the same positions and under the same normalisation, of an action that
            the data never takes, nats, ``[B, T]``. Receives the gradient.
        weight: how good the token is, in [0, 1] (not checked, as that would read the tensor), ``[B, T]``:
            in Q-SFT a value, from ``qsft_target``. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.

    Returns:
        ``TokenLoss``: ``loss`` in nats, ``[B, T]``, 0 off the mask, not averaged. Metric ``weight``.

    Raises:
        TypeError: ``mask`` is not bool or another tensor not floating point.
        ValueError: shapes differ.

    Note:
        *Gradient.* ``-dL/dlogp = w``, ``-dL/dlogp_dummy = 1 - w``. A weight outside [0, 1] makes one of them
        negative, and the loss is then without a minimum.

        *Fixed point.* Exact, as the coefficients w·πᵦ and Σ πᵦ·(1 - w) add up to 1. A weight that is itself
        random counts by its mean: p* = πᵦ·E[w], so a sampled target is as good as its expectation.

        *Against the paper.* Its equation 2 is this without the minus sign; its equation 3, what was trained,
        has no dummy: ``uniform_cross_entropy``, which is biased.

    Example:
        >>> import torch
        >>> from klent.objectives import weighted_cross_entropy
        >>> logp, dummy = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.25]]).log()
        >>> mask = torch.tensor([[True, True]])
        >>> weighted_cross_entropy(logp, dummy, torch.tensor([[1.0, 0.5]]), mask).loss
        tensor([[0.6931, 1.0397]])

    References:
        Hong, Dragan and Levine, Q-SFT: Q-Learning for Language Models via Supervised Fine-Tuning, 2024,
        arXiv:2411.05193, equation 2.
    """
    check_tokens(mask, logp=logp, logp_dummy=logp_dummy, weight=weight)
    logp, logp_dummy, weight = on_mask(mask, logp, logp_dummy, weight.detach())
    (loss,) = on_mask(mask, -(weight * logp + (1 - weight) * logp_dummy))
    return TokenLoss(loss, {"weight": metric(weight, mask)})


@token_loss()
def uniform_cross_entropy(
    logp: Tensor, logp_mean: Tensor, weight: Tensor, mask: Tensor, *, actions: int
) -> TokenLoss:
    """Q-SFT's loss as the paper trained it: what a token does not get is spread over all the others.

        Lₜ = -(wₜ·logpₜ + (1 - wₜ)/(K - 1)·Σ_{a ≠ aₜ} log p(a)),   K = actions

    Label smoothing with a smoothing of its own for each token. It needs no dummy action, and pays with a
    bias: ``weighted_cross_entropy`` is the exact form.

    Args:
        logp: log-probabilities of the data's tokens, nats, ``[B, T]``. Receives the gradient.
        logp_mean: mean of the log-probabilities of *all* K actions at that position, the token's own among
            them, nats, ``[B, T]``: ``logits.mean(-1) - logits.logsumexp(-1)``. Receives the gradient.
        weight: how good the token is, in [0, 1], ``[B, T]``. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        actions: K, the size of the vocabulary, at least 2.

    Returns:
        ``TokenLoss``: ``loss`` in nats, ``[B, T]``, 0 off the mask, not averaged. Metric ``weight``.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``actions`` not a number.
        ValueError: shapes differ or ``actions`` is below 2.

    Note:
        *Bias.* Trained to the end, p*(a) = w(a)·πᵦ(a) + Σ_{b ≠ a} πᵦ(b)·(1 - w(b))/(K - 1). The second term
        is O(1/K) in p, but O(1/(K·πᵦ(a))) in the ratio p/πᵦ that stands for the value: rare actions look
        excellent, and the maximum in the Bellman target picks them. A large vocabulary does not cure it, as
        its rare actions are rarer.

    Example:
        Three actions of probability 0.5, 0.25, 0.25; the last two share 1 - w.

        >>> import torch
        >>> from klent.objectives import uniform_cross_entropy
        >>> p = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
        >>> w, mask = torch.tensor([[0.8]]), torch.tensor([[True]])
        >>> uniform_cross_entropy(p[..., 0], p.mean(-1), w, mask, actions=3).loss
        tensor([[0.8318]])

    References:
        Hong, Dragan and Levine, Q-SFT, 2024, arXiv:2411.05193, equation 3.
    """
    check_tokens(mask, logp=logp, logp_mean=logp_mean, weight=weight)
    check_number("actions", actions, 2, math.inf, ends="[)")
    logp, logp_mean, weight = on_mask(mask, logp, logp_mean, weight.detach())
    logp_others = (actions * logp_mean - logp) / (actions - 1)
    (loss,) = on_mask(mask, -(weight * logp + (1 - weight) * logp_others))
    return TokenLoss(loss, {"weight": metric(weight, mask)})

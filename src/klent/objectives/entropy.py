"""Entropy: as a loss, as a choice of tokens, and what it tells about an update and a run."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent.objectives.checks import (
    check_choice,
    check_floating,
    check_number,
    check_same_shape,
    check_tokens,
)
from klent.objectives.kinds import estimator, measure, selector, token_loss, without_coef
from klent.objectives.masking import largest, on_mask, share
from klent.objectives.types import TokenLoss

__all__ = [
    "RewardEntropyFit",
    "entropy_loss",
    "fit_reward_entropy",
    "high_entropy_tokens",
    "predicted_entropy_change",
    "token_covariance",
]


class RewardEntropyFit(NamedTuple):
    """The line R = -a·exp(H) + b through a run's points.

    Attributes:
        a: reward gained per unit that exp(entropy) loses.
        b: reward at exp(entropy) = 0, an intercept that no policy reaches.
        covariance: of (a, b), ``[2, 2]`` float64. The ceiling's variance is the sum of its diagonal minus the
            other two.
        ceiling: -a + b, the reward that the line predicts once all entropy is spent.
    """

    a: float
    b: float
    covariance: Tensor
    ceiling: float


@token_loss(idle=without_coef)
def entropy_loss(entropy: Tensor, mask: Tensor, *, coef: float) -> TokenLoss:
    """Entropy of the policy, as something to lower or to raise.

        Lₜ = coef·Hₜ

    A positive ``coef`` minimises entropy and makes the policy surer of itself; a negative one is a bonus that
    keeps it exploring.

    Args:
        entropy: of the next-token distributions of the policy being trained, nats, ``[B, T]``. Receives the
            gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        coef: loss per nat, any finite number. Mind the sign: most trainers' ``entropy_coef=0.01`` is
            ``coef=-0.01`` here.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged; no metrics.

    Raises:
        TypeError: ``mask`` is not bool, ``entropy`` not floating point, or ``coef`` not a number.
        ValueError: shapes differ or ``coef`` is not finite.

    Note:
        *Exactness.* Token by token: that a token changes the entropy of those after it is left out, so this
        is not the gradient of the entropy of the sequence.

    Example:
        >>> import torch
        >>> from klent.objectives import entropy_loss
        >>> entropy_loss(torch.tensor([[2.0, 0.5]]), torch.tensor([[True, True]]), coef=-0.1).loss
        tensor([[-0.2000, -0.0500]])

    References:
        Gao et al., One-shot Entropy Minimization, 2025, arXiv:2505.20282.
    """
    check_tokens(mask, entropy=entropy)
    check_number("coef", coef, -math.inf, math.inf, ends="()")
    (entropy,) = on_mask(mask, entropy)
    (loss,) = on_mask(mask, coef * entropy)
    return TokenLoss(loss, {})


@selector
def high_entropy_tokens(entropy: Tensor, mask: Tensor, *, fraction: float = 0.2) -> Tensor:
    """The tokens at which the policy was least sure: the forks of the text.

        S = the ⌈fraction·N⌉ tokens of largest Hₜ among the N on the mask

    Trained on alone (``mask & high_entropy_tokens(...)`` as a surrogate's mask) they are the 80/20 rule.

    Args:
        entropy: of the next-token distributions, nats, ``[B, T]``. Receives no gradient.
        mask: True on the tokens to choose from, ``[B, T]`` bool.
        fraction: share to choose, in (0, 1].

    Returns:
        ``[B, T]`` bool, True on the chosen tokens, all of them on the mask: at least one if the mask has any.
        Of equal entropies the earlier token (by row, then column) is chosen.

    Raises:
        TypeError: ``mask`` is not bool, ``entropy`` not floating point, or ``fraction`` not a number.
        ValueError: shapes differ or ``fraction`` is outside (0, 1].

    Note:
        *Batch dependence.* Tokens of the whole call compete, not of each sequence. Cutting a batch changes
        the choice, so choose before cutting.

        *Against released code.* The authors' code also takes ⌈fraction·N⌉ of the micro-batch and then
        averages over the chosen tokens; TRL's ``top_entropy_quantile`` averages over all tokens, which at
        0.2 makes the gradient about five times smaller. Reduce with ``mask & chosen`` for the first,
        ``mask`` for the second.

    Example:
        >>> import torch
        >>> from klent.objectives import high_entropy_tokens
        >>> entropy = torch.tensor([[0.1, 2.0, 0.3], [1.5, 0.2, 9.0]])
        >>> mask = torch.tensor([[True, True, True], [True, True, False]])
        >>> high_entropy_tokens(entropy, mask, fraction=0.4)
        tensor([[False,  True, False],
                [ True, False, False]])

    References:
        Wang et al., Beyond the 80/20 Rule, 2025, arXiv:2506.01939.
    """
    check_tokens(mask, entropy=entropy)
    check_number("fraction", fraction, 0, 1, ends="(]")
    return largest(entropy, mask, share(fraction, mask.sum()))


@estimator
def token_covariance(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """What each token adds to the covariance of log-probability and advantage.

        cₜ = (logpₜ - mean(logp))·(Aₜ - mean(A))

    Its mean foretells entropy: for softmax logits moved by η·A, ΔH ≈ -η·Cov(logp, A). Likely and good, or
    unlikely and bad: those tokens, with large c, spend it.

    Args:
        logp: log-probabilities of the sampled tokens, nats, ``[B, T]``. Receives no gradient.
        advantage: one number per token, ``[B, T]``, in units of reward.
        mask: True on the tokens to look at, ``[B, T]`` bool.

    Returns:
        ``[B, T]``, nats times units of reward, without gradient, 0 off the mask. Its mean over the mask is
        the covariance (of the population: divided by N).

    Raises:
        TypeError: ``mask`` is not bool or another tensor not floating point.
        ValueError: shapes differ.

    Note:
        *Batch dependence.* Means are over the mask of this call. Cutting a batch changes every number.

        *Conditions.* The law is for natural gradient on separate logits per prefix. For the plain gradient it
        reads ΔH ≈ -η·Cov(logp, π·A); an optimiser such as Adam on shared weights follows neither exactly.
        ``predicted_entropy_change`` is the law itself, where all probabilities are at hand.

        *Prefixes.* The law's covariance is over actions after one prefix. Pooled over prefixes, as here, it
        also has the covariance between prefixes of -H with the mean advantage. That is 0 only if advantages
        have mean 0 after every prefix, which one advantage for a whole sequence has not.

    Example:
        The means are -1 and 0.

        >>> import torch
        >>> from klent.objectives import token_covariance
        >>> logp, advantage = torch.tensor([[-0.5, -1.5]]), torch.tensor([[1.0, -1.0]])
        >>> token_covariance(logp, advantage, torch.tensor([[True, True]]))
        tensor([[0.5000, 0.5000]])

    References:
        Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025,
        arXiv:2505.22617.
    """
    check_tokens(mask, logp=logp, advantage=advantage)
    logp, advantage = on_mask(mask, logp.detach(), advantage.detach())
    count = mask.sum().clamp(min=1)
    product = (logp - logp.sum() / count) * (advantage - advantage.sum() / count)
    (product,) = on_mask(mask, product)
    return product


@measure
def predicted_entropy_change(
    logp: Tensor,
    advantage: Tensor,
    *,
    step: float,
    gradient: Literal["plain", "natural"] = "natural",
) -> Tensor:
    """Change of entropy that one small policy-gradient step on the logits brings.

        plain     Δz = step·π·(A - E[A]),   ΔH ≈ -step·Cov(log π, π·(A - E[A]))
        natural   Δz = step·A,              ΔH ≈ -step·Cov(log π, A)

    Means and covariance are over actions from π. Entropy falls where likely actions are the good ones.

    Args:
        logp: log-probabilities that sum to 1 over the last axis, nats, ``[..., K]``.
        advantage: of each action, ``[..., K]``, in units of reward; its mean under π need not be 0.
        step: learning rate times whatever the gradient was multiplied by, in [0, inf).
        gradient: ``plain`` for the gradient of E[A] in the logits, ``natural`` for the natural gradient.

    Returns:
        Nats, ``[...]``, without gradient: of each distribution, to first order in ``step``.

    Raises:
        TypeError: a tensor is not floating point or ``step`` not a number.
        ValueError: shapes differ, ``step`` is out of range or ``gradient`` is unknown.

    Note:
        *Conditions.* Each distribution has logits of its own, and the step is small: the error is second
        order. With shared weights, or an optimiser such as Adam, neither form is what happens, and
        ``token_covariance``, which estimates the natural one from sampled tokens, is an indication only.

        *Against the paper.* Its theorem for the plain gradient has π·A, for advantages with mean 0.

    Example:
        >>> import torch
        >>> from klent.objectives import predicted_entropy_change
        >>> logp, advantage = torch.tensor([0.75, 0.25]).log(), torch.tensor([1.0, -1.0])
        >>> predicted_entropy_change(logp, advantage, step=0.01)
        tensor(-0.0041)
        >>> predicted_entropy_change(logp, advantage, step=0.01, gradient="plain")
        tensor(-0.0015)

    References:
        Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025,
        arXiv:2505.22617, lemma 1, theorems 1 and 2.
    """
    check_same_shape(logp=logp, advantage=advantage)
    check_number("step", step, 0, math.inf, ends="[)")
    check_choice("gradient", gradient, ("plain", "natural"))
    logp, advantage = logp.detach(), advantage.detach()
    p = logp.exp()
    logp = torch.where(p > 0, logp, 0.0)  # an impossible action has no weight, and 0·inf would be NaN
    push = advantage - (p * advantage).sum(dim=-1, keepdim=True)
    if gradient == "plain":
        push = p * push
    centred = logp - (p * logp).sum(dim=-1, keepdim=True)
    return -step * (p * centred * push).sum(dim=-1)


@estimator
def fit_reward_entropy(entropy: Tensor, reward: Tensor) -> RewardEntropyFit:
    """Fit the law by which a run trades entropy for reward.

        R = -a·exp(H) + b,   ceiling = -a + b

    An ordinary least-squares line in exp(H): how much reward the entropy spent has bought, and where it ends.

    Args:
        entropy: mean entropy of the policy at each step, nats, ``[n]``, n at least 3.
        reward: mean reward at the same steps, ``[n]``.

    Returns:
        ``RewardEntropyFit(a, b, covariance, ceiling)``. Computed in float64 on the CPU; waits for the device.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes are not ``[n]``, there are fewer than 3 points, one is not finite, or the entropy
            is constant.

    Note:
        The covariance is the textbook's, σ²(XᵀX)⁻¹ with σ² = residual sum of squares / (n - 2): it takes the
        points as independent. Steps of one run are not, so read it as a lower bound. The ceiling is an
        extrapolation to H = 0 and holds only for a method that lets entropy fall.

    Example:
        >>> import torch
        >>> from klent.objectives import fit_reward_entropy
        >>> entropy = torch.tensor([2.0, 1.5, 1.0, 0.5], dtype=torch.float64)
        >>> fit = fit_reward_entropy(entropy, 0.8 - 0.1 * entropy.exp())
        >>> round(fit.a, 6), round(fit.b, 6), round(fit.ceiling, 6)
        (0.1, 0.8, 0.7)

    References:
        Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, 2025,
        arXiv:2505.22617, equation 6.
    """
    check_same_shape(entropy=entropy, reward=reward)
    _check_points(entropy, reward)
    x = entropy.detach().to("cpu", torch.float64).exp()
    y = reward.detach().to("cpu", torch.float64)
    n, mean = len(x), x.mean()
    spread = (x - mean).square().sum()
    slope = ((x - mean) * (y - y.mean())).sum() / spread
    b = y.mean() - slope * mean
    variance = (y - b - slope * x).square().sum() / (n - 2)
    # of (a, b), where a = -slope: the textbook's sign between slope and intercept turns
    covariance = variance * torch.stack([1 / spread, mean / spread, mean / spread, 1 / n + mean**2 / spread])
    return RewardEntropyFit(-slope.item(), b.item(), covariance.view(2, 2), (slope + b).item())


def _check_points(entropy: Tensor, reward: Tensor) -> None:
    check_floating("entropy", entropy)
    if entropy.ndim != 1:
        raise ValueError(f"entropy has shape {list(entropy.shape)}, expected [n]: one number per step")
    if len(entropy) < 3:
        raise ValueError(
            f"entropy has {len(entropy)} points, expected at least 3: two leave no error to estimate"
        )
    if not (entropy.isfinite().all() and reward.isfinite().all()):
        raise ValueError(
            "entropy or reward has a value that is not finite, expected numbers: drop those steps"
        )
    if entropy.max() - entropy.min() <= 4 * torch.finfo(entropy.dtype).eps * entropy.abs().max():
        raise ValueError("entropy is constant, expected it to vary: one entropy does not fix a line")

"""Exact numbers of full distributions: entropy, cross-entropy, KL, and the gradients that training follows.

    H(p, q) = H(p) + KL(p ‖ q)

Cross-entropy is what coding p with q costs, entropy what p costs at best, and KL the difference.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives.checks import check_choice, check_floating, check_same_shape
from klent.objectives.kinds import measure

__all__ = [
    "categorical_cross_entropy",
    "categorical_entropy",
    "categorical_kl",
    "reinforce_logit_gradient",
    "sft_logit_gradient",
]


Unit = Literal["nats", "bits"]


@measure
def categorical_entropy(logp: Tensor, *, unit: Unit = "nats") -> Tensor:
    """Entropy of a full distribution.

        H(p) = -Σₖ pₖ·log pₖ,   0·log 0 = 0

    How unsure the next action is: log K for K equally likely ones, 0 for a certain one.

    Args:
        logp: log-probabilities that sum to 1 over the last axis, nats, ``[..., K]``.
        unit: of the answer: ``nats``, or ``bits``, smaller by log 2.

    Returns:
        ``[...]``, differentiable. Normalisation is not checked.

    Raises:
        TypeError: ``logp`` is not floating point.
        ValueError: ``unit`` is unknown.

    Example:
        >>> import torch
        >>> from klent.objectives import categorical_entropy
        >>> categorical_entropy(torch.tensor([0.5, 0.25, 0.25]).log(), unit="bits")
        tensor(1.5000)

    References:
        Shannon, A Mathematical Theory of Communication, Bell System Technical Journal 27, 1948.
    """
    check_floating("logp", logp)
    return categorical_cross_entropy(logp, logp, unit=unit)


@measure
def categorical_cross_entropy(logp_p: Tensor, logp_q: Tensor, *, unit: Unit = "nats") -> Tensor:
    """Cross-entropy of two full distributions.

        H(p, q) = -Σₖ pₖ·log qₖ = H(p) + KL(p ‖ q),   0·log 0 = 0

    What supervised training lowers, with p the data and q the model. H(p) is the data's, so lowering H(p, q)
    lowers KL(p ‖ q) and nothing else.

    Args:
        logp_p: log-probabilities that sum to 1 over the last axis, nats, ``[..., K]``.
        logp_q: the same of the second distribution, same shape.
        unit: of the answer, ``nats`` or ``bits``.

    Returns:
        ``[...]``, differentiable in both. inf where q is 0 and p is not. Normalisation is not checked.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes differ or ``unit`` is unknown.

    Example:
        >>> import torch
        >>> from klent.objectives import categorical_cross_entropy
        >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
        >>> categorical_cross_entropy(p.log(), q.log(), unit="bits")
        tensor(1.5000)
    """
    check_same_shape(logp_p=logp_p, logp_q=logp_q)
    cost = torch.where(logp_p > -torch.inf, -logp_q, 0.0)
    return _in(unit, (logp_p.exp() * cost).sum(dim=-1))


@measure
def categorical_kl(logp_p: Tensor, logp_q: Tensor, *, unit: Unit = "nats") -> Tensor:
    """KL between full distributions.

        KL(p ‖ q) = Σₖ pₖ·(log pₖ - log qₖ),   0·log 0 = 0

    The number that estimators estimate, where all probabilities are at hand.

    Args:
        logp_p: log-probabilities that sum to 1 over the last axis, nats, ``[..., K]``.
        logp_q: the same of the second distribution, same shape.
        unit: of the answer, ``nats`` or ``bits``.

    Returns:
        ``[...]``, differentiable in both. inf where q is 0 and p is not. Normalisation is not checked.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes differ or ``unit`` is unknown.

    Note:
        *Exactness.* Over a vocabulary, for the next token only; averaged over prefixes from p and summed
        over a sequence's tokens it is the KL between sequences.

    Example:
        >>> import torch
        >>> from klent.objectives import categorical_kl
        >>> p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
        >>> categorical_kl(p.log(), q.log())
        tensor(0.3466)
        >>> categorical_kl(p.log(), q.log(), unit="bits")
        tensor(0.5000)
    """
    check_same_shape(logp_p=logp_p, logp_q=logp_q)
    # Only q's value is replaced where p is 0: -inf - -inf would be NaN, and exp(-inf) is 0 with gradient 0.
    support = logp_p > -torch.inf
    gap = torch.where(support, logp_p, 0.0) - torch.where(support, logp_q, 0.0)
    return _in(unit, (logp_p.exp() * gap).sum(dim=-1))


@measure
def sft_logit_gradient(logp: Tensor, logp_data: Tensor) -> Tensor:
    """Gradient, in the logits, of cross-entropy on data.

        ∂/∂zₖ of -Σₐ q(a)·log π(a) = π(k) - q(k)

    Also that of KL(data ‖ policy). With q certain of one token it is the gradient of one sample, π - 1 on
    that token and π on the others.

    Args:
        logp: log-probabilities of the policy, the softmax of the logits z, nats, ``[..., K]``.
        logp_data: log-probabilities of the data, nats, same shape; 0 and -inf for one given token.

    Returns:
        ``[..., K]``, of the loss: a step goes the other way. It sums to 0 over the last axis.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes differ.

    Note:
        Beside ``reinforce_logit_gradient``: sample by sample the two differ by the factor A, which is no
        difference in kind. On average they do: this pulls on every token that the data has, whether or not
        the policy would ever produce it.

    Example:
        >>> import torch
        >>> from klent.objectives import sft_logit_gradient
        >>> logp, token = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.0, 1.0, 0.0])
        >>> sft_logit_gradient(logp, token.log())
        tensor([ 0.5000, -0.7500,  0.2500])
    """
    check_same_shape(logp=logp, logp_data=logp_data)
    return logp.exp() - logp_data.exp()


@measure
def reinforce_logit_gradient(logp: Tensor, advantage: Tensor) -> Tensor:
    """Mean gradient, in the logits, of REINFORCE on the policy's own samples.

        ∂/∂zₖ of -Σₐ π(a)·A(a), A held fixed = Σₐ π(a)·A(a)·(π(k) - [k = a]) = -π(k)·(A(k) - E[A])

    The middle form is the mean of what one sample a contributes, A(a)·(π - onehot(a)).

    Args:
        logp: log-probabilities of the policy, the softmax of the logits z, nats, ``[..., K]``.
        advantage: of each action, ``[..., K]``, in units of reward; its mean under π need not be 0.

    Returns:
        ``[..., K]``, of the loss: a step goes the other way. It sums to 0 over the last axis.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes differ.

    Note:
        Beside ``sft_logit_gradient``: an action moves in proportion to its probability, and one that is never
        sampled does not move. With A = log(data/policy) this is the gradient of KL(policy ‖ data), where
        supervised training follows KL(data ‖ policy).

    Example:
        >>> import torch
        >>> from klent.objectives import reinforce_logit_gradient
        >>> reinforce_logit_gradient(torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.0, 1.0, 0.0]))
        tensor([ 0.1250, -0.1875,  0.0625])
    """
    check_same_shape(logp=logp, advantage=advantage)
    p = logp.exp()
    return -p * (advantage - (p * advantage).sum(dim=-1, keepdim=True))


def _in(unit: str, nats: Tensor) -> Tensor:
    check_choice("unit", unit, ("nats", "bits"))
    return nats / math.log(2) if unit == "bits" else nats

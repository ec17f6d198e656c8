"""Values of tokens from logged play: Q-SFT, whose values are probabilities, and ILQL, whose values are logits.

A model trained by ``weighted_cross_entropy`` with ``qsft_target`` as weight has p = πᵦ·Q, so that p/πᵦ is Q. A model
trained by ``ilql_loss`` has Q for a logit, and a critic beside it that holds what good actions are worth.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives.checks import (
    check_choice,
    check_floating,
    check_number,
    check_same_shape,
    check_tokens,
)
from klent.objectives.kinds import estimator, token_loss
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["ilql_loss", "qsft_policy", "qsft_target"]


@estimator
def qsft_target(
    reward: Tensor,
    logp_value: Tensor,
    logp_behaviour: Tensor,
    *,
    gamma: float = 1.0,
    min_behaviour: float = 0.0,
) -> Tensor:
    """Bellman target of Q-SFT, the weight of a token in its loss.

        B = clip(r + gamma·max_a p(a|s')/πᵦ(a|s'), 0, 1),   over the a with πᵦ(a|s') >= min_behaviour

    What the token earned, and the best that can follow it among what the data has tried.

    Args:
        reward: received for the token, ``[...]``; returns must lie in [0, 1], so rescale them first.
        logp_value: log p(a|s') under the target network at the *next* position, nats, ``[..., K]``, without
            the dummy's column. -inf everywhere after the last token, where nothing follows.
        logp_behaviour: log πᵦ(a|s') of the model of the data there, nats, ``[..., K]``.
        gamma: discount per token, in [0, 1].
        min_behaviour: actions less likely than this in the data do not enter the maximum, in [0, 1).

    Returns:
        ``[...]``, in [0, 1], without gradient: a ``weight`` for ``weighted_cross_entropy``. The target
        network is not updated here.

    Raises:
        TypeError: a tensor is not floating point or a setting not a number.
        ValueError: shapes do not fit or a setting is out of range.

    Note:
        *Clip.* The paper assumes values in [0, 1]; a ratio above 1 is an error of the two estimates, mostly
        on an action that is rare in the data, and a weight above 1 would leave the loss without a minimum.
        ``min_behaviour`` keeps such actions out of the maximum; the paper has neither.

    Example:
        The ratios are 0.2/0.5 and 0.4/0.5, the second the better.

        >>> import torch
        >>> from klent.objectives import qsft_target
        >>> value, behaviour = torch.tensor([[0.2, 0.4]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> qsft_target(torch.tensor([0.1]), value, behaviour, gamma=0.5)
        tensor([0.5000])

    References:
        Hong, Dragan and Levine, Q-SFT: Q-Learning for Language Models via Supervised Fine-Tuning, 2024,
        arXiv:2411.05193.
    """
    check_floating("reward", reward)
    check_same_shape(logp_value=logp_value, logp_behaviour=logp_behaviour)
    if logp_value.shape[:-1] != reward.shape or logp_value.ndim == 0:
        raise ValueError(
            f"logp_value has shape {list(logp_value.shape)}, expected {[*reward.shape, 'K']}: a row of "
            "actions for each reward"
        )
    check_number("gamma", gamma, 0, 1)
    check_number("min_behaviour", min_behaviour, 0, 1, ends="[)")
    value = _value(logp_value.detach(), logp_behaviour.detach(), min_behaviour).amax(dim=-1)
    return (reward.detach() + gamma * value).clamp(0, 1)


@token_loss()
def ilql_loss(
    logit: Tensor,
    logit_second: Tensor,
    logp: Tensor,
    value: Tensor,
    weight: Tensor,
    logit_target: Tensor,
    logit_second_target: Tensor,
    mask: Tensor,
    *,
    tau: float = 0.7,
    conservative: float = 0.01,
) -> TokenLoss:
    """Implicit Q-learning for language models: a logit is a token's value, and no maximum is ever taken.

        Lₜ = (logitₜ - wₜ)² + (logit_secondₜ - wₜ)² + |tau - 1[u < 0]|·u² - conservative·logpₜ
        u = min(logit_targetₜ, logit_second_targetₜ) - valueₜ

    The first two terms move Q(s, a) of both heads to what was earned and the value of the state that followed; the
    third one moves the value of a state to an expectile of its actions' values, above their mean for tau > 1/2, so
    that it tends to the best of the actions *in the data* as tau tends to 1, of the smaller of two estimates, as a
    value that is too large by chance is else taken for a good one; the last holds down the values of tokens that
    the data never has.

    Args:
        logit: Q of the data's token, its logit before any softmax, ``[B, T]``. Receives the gradient.
        logit_second: the same of a second head, ``[B, T]``. Receives the gradient.
        logp: log-probability of the token under softmax(Q) of the first, nats, ``[B, T]``. Receives the gradient.
        value: of the state before the token, from a head of its own, ``[B, T]``. Receives the gradient.
        weight: what was earned for the token and the value of the state after it, ``[B, T]``; in [0, 1] where the
            trainer makes it.
        logit_target: ``logit`` under the target network, ``[B, T]``.
        logit_second_target: ``logit_second`` under it, ``[B, T]``.
        mask: True where a token is trained on, ``[B, T]`` bool.
        tau: the expectile, in (0, 1).
        conservative: weight of the last term, in [0, inf).

    Returns:
        ``TokenLoss``: ``loss``, ``[B, T]``, 0 off the mask, not averaged. Metrics ``bellman/error``, the mean of
        the first term, ``bellman/advantage``, that of u, and ``bellman/apart``, that of the distance of the two
        heads under the target network.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Fixed point.* With values 0 and 1 equally often among the data's actions, the value of a state is tau: above
        the mean of 0.5, and below the best, 1. Where what follows a token is chance and not choice, the expectile is
        just as optimistic about the chance.

        *Against the paper.* Its last term is of both heads. Here it is of the first alone: the second is read at
        the data's tokens and nowhere else, so that no token that the data never has is taken for a good one by it.
        In a table the last term lifts a value by conservative·(1 - p)/2; the smaller one of the two is not lifted.

    Example:
        >>> import torch
        >>> from klent.objectives import ilql_loss
        >>> q, p, v = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.0, 1.0]])
        >>> w, mask = torch.tensor([[1.0, 0.5]]), torch.tensor([[True, True]])
        >>> ilql_loss(q, q, p, v, w, q, q + 1, mask, tau=0.9, conservative=0.0).loss
        tensor([[0.7250, 0.0250]])

    References:
        Snell et al., Offline RL for Natural Language Generation with Implicit Language Q Learning, 2022,
        arXiv:2206.11871.
    """
    check_tokens(mask, logit=logit, logit_second=logit_second, logp=logp, value=value, weight=weight)
    check_tokens(mask, logit_target=logit_target, logit_second_target=logit_second_target)
    check_number("tau", tau, 0, 1, ends="()")
    check_number("conservative", conservative, 0, math.inf, ends="[)")
    logit, second, logp, value, weight = on_mask(mask, logit, logit_second, logp, value, weight.detach())
    target, second_target = on_mask(mask, logit_target.detach(), logit_second_target.detach())
    advantage = torch.minimum(target, second_target) - value
    error = (logit - weight).square()
    expectile = (tau - (advantage < 0).to(advantage.dtype)).abs() * advantage.square()
    metrics = {
        "bellman/error": metric(error, mask),
        "bellman/advantage": metric(advantage, mask),
        "bellman/apart": metric((target - second_target).abs(), mask),
    }
    errors = error + (second - weight).square()
    return TokenLoss(errors + expectile - conservative * logp, metrics)


@estimator
def qsft_policy(
    logp_value: Tensor,
    logp_behaviour: Tensor,
    *,
    beta: float,
    form: Literal["probability", "ratio"] = "ratio",
) -> Tensor:
    """The policy to sample from after Q-SFT: the data's, tilted towards what is valuable.

        ratio         π(a) ∝ πᵦ(a)·exp(beta·p(a)/πᵦ(a))
        probability   π(a) ∝ πᵦ(a)·exp(beta·p(a))

    ``ratio`` tilts by the value itself, as p/πᵦ is Q; ``probability`` is the rule that the paper gives.

    Args:
        logp_value: log-probabilities that Q-SFT trained, nats, ``[..., K]``, without the dummy's column.
        logp_behaviour: log-probabilities of the model of the data, nats, ``[..., K]``.
        beta: how far to tilt, in [0, inf); 0 is the data's policy.
        form: one of the two.

    Returns:
        Log-probabilities that sum to 1 over the last axis, nats, ``[..., K]``, without gradient. An action
        that the data never takes stays at -inf.

    Raises:
        TypeError: a tensor is not floating point or ``beta`` not a number.
        ValueError: shapes differ, ``beta`` is out of range or ``form`` is unknown.

    Note:
        *The paper's rule is not greedy in the limit.* As beta grows, ``ratio`` tends to the action of largest
        Q, ``probability`` to that of largest πᵦ·Q: it counts the data twice, and no beta makes up for it.
        Ratios are bounded by 1, as in ``qsft_target``.

    Example:
        πᵦ is (0.9, 0.1) and Q is (0.5, 1): only the ratio finds the better action.

        >>> import torch
        >>> from klent.objectives import qsft_policy
        >>> behaviour, value = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.45, 0.1]).log()
        >>> qsft_policy(value, behaviour, beta=10.0).exp()
        tensor([0.0572, 0.9428])
        >>> qsft_policy(value, behaviour, beta=10.0, form="probability").exp()
        tensor([0.9967, 0.0033])

    References:
        Hong, Dragan and Levine, Q-SFT, 2024, arXiv:2411.05193, algorithm 1.
    """
    check_same_shape(logp_value=logp_value, logp_behaviour=logp_behaviour)
    check_number("beta", beta, 0, math.inf, ends="[)")
    check_choice("form", form, ("probability", "ratio"))
    logp_value, logp_behaviour = logp_value.detach(), logp_behaviour.detach()
    tilt = logp_value.exp() if form == "probability" else _value(logp_value, logp_behaviour, 0.0)
    return (logp_behaviour + beta * tilt).log_softmax(dim=-1)


def _value(logp_value: Tensor, logp_behaviour: Tensor, min_behaviour: float) -> Tensor:
    """p/πᵦ, at most 1; 0 for an action that the data does not support."""
    floor = math.log(min_behaviour) if min_behaviour > 0 else -math.inf
    supported = (logp_behaviour > -math.inf) & (logp_behaviour >= floor)
    log_ratio = torch.where(supported, logp_value, -math.inf) - torch.where(supported, logp_behaviour, 0.0)
    return log_ratio.clamp(max=0).exp()

"""A reward per token as the loss that pays it out, so that rewards can be audited like losses."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from klent.objectives import reinforce, reward_to_go


def in_reward(reward: Callable[..., Tensor], *, to_go: bool = True) -> Callable[..., Tensor]:
    """The policy gradient of a reward per token.

        Lₜ = -stop_gradient(Gₜ)·logpₜ,   Gₜ = rₜ + Gₜ₊₁  (with ``to_go``; else rₜ)

    A reward has no gradient of its own: it moves a policy through the log-probability of the tokens it
    praises.

    Args:
        reward: takes ``logp`` and ``mask`` (and whatever else the auditor supplies) by name and returns a
            reward per token, ``[B, T]``; any gradient of it is cut.
        to_go: whether a token answers for the rewards of those after it, undiscounted.

    Returns:
        A loss per token with the parameters of ``reward``, not averaged.

    Example:
        >>> from klent import audit
        >>> from klent.objectives import kl_in_reward
        >>> audit.certify(audit.in_reward(kl_in_reward), coef=1.0).on_policy.follows
        'reverse_kl'
        >>> audit.certify(audit.in_reward(kl_in_reward, to_go=False), coef=1.0).on_policy.follows
        'reverse_kl_token'
    """

    @functools.wraps(reward)
    def loss(logp: Tensor, mask: Tensor, **others: Any) -> Tensor:
        paid = torch.where(mask, reward(logp=logp, mask=mask, **others), 0.0)
        advantage = reward_to_go(paid, mask) if to_go else paid
        return reinforce(logp, advantage, mask).loss

    own = inspect.signature(reward).parameters.values()
    given = [
        p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY)
        for p in own
        if p.name not in ("logp", "mask")
    ]
    first = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("logp", "mask")]
    loss.__signature__ = inspect.Signature([*first, *given])  # type: ignore[attr-defined]
    return loss

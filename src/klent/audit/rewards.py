"""A reward per token as its policy gradient loss, so that rewards can be audited like losses."""

import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from klent.audit.call import as_argument
from klent.audit.names import stream_of
from klent.objectives import reinforce, reward_to_go


def in_reward(reward: Callable[..., Tensor], *, to_go: bool = True) -> Callable[..., Tensor]:
    """The policy gradient of a reward per token.

        Lₜ = -stop_gradient(Gₜ)·logpₜ,   Gₜ = rₜ + Gₜ₊₁  (with ``to_go``; else rₜ)

    A reward has no gradient of its own: it moves a policy through the log-probability of the tokens that it
    rewards.

    Args:
        reward: takes ``logp`` and ``mask`` (and anything else that the auditor supplies) by name and returns
            a reward per token, ``[B, T]``; its gradient is cut.
        to_go: whether a token is credited with the rewards of later tokens, undiscounted.

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

    parameters = inspect.signature(reward).parameters.values()
    own_names = {p.name: stream for p in parameters if (stream := stream_of(p.name)) in ("logp", "mask")}
    first = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("logp", "mask")]
    passed_on = [
        p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY)
        for p in parameters
        if p.name not in own_names
    ]

    @functools.wraps(reward)
    def loss(logp: Tensor, mask: Tensor, **others: object) -> Tensor:
        shared = {
            name: as_argument(name, logp if stream == "logp" else mask) for name, stream in own_names.items()
        }
        paid = torch.where(mask, reward(**shared, **others), 0.0)
        advantage = reward_to_go(paid, mask) if to_go else paid
        return reinforce(logp, advantage, mask).loss

    loss.__signature__ = inspect.Signature([*first, *passed_on])  # type: ignore[attr-defined]
    return loss

"""What an objective is, declared where it stands.

    @token_loss(idle=lambda advantage, **_: advantage == 0)
    def reinforce(logp, advantage, mask): ...

A recipe binds functions by their kind; nothing guesses it from names or annotations. A loss may also say
where it is idle: the actions at which its gradient is 0 whatever the policy's numbers turn out to be. The
update leaves out the forward pass of completions that are idle throughout, and of no others.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor

Kind = Literal[
    "token_loss",  # a loss per action, [B, T]
    "pair_loss",  # a loss per pair of completions, [B]
    "selector",  # a choice of actions, [B, T] bool
    "advantage",  # how much better than expected, [B] or [B, T], from rewards
    "token_reward",  # a reward per action, [B, T]
    "estimator",  # a number made of streams, for an update or a log
    "measure",  # exact numbers of full distributions
    "reduction",  # the one place that divides
]
Idle = Callable[..., Tensor]
F = TypeVar("F", bound=Callable[..., Any])


class Declaration(NamedTuple):
    """What a function of klent.objectives says of itself."""

    kind: Kind
    idle: Idle | None = None
    """Called with the streams and settings that the function reads; ``[B, T]`` bool, True where idle."""


def declare(kind: Kind, idle: Idle | None = None) -> Callable[[F], F]:
    """A decorator that gives a function its kind."""

    def mark(function: F) -> F:
        function.__klent__ = Declaration(kind, idle)  # type: ignore[attr-defined]
        return function

    return mark


def token_loss(*, idle: Idle | None = None) -> Callable[[F], F]:
    """A loss per action; see the module for ``idle``."""
    return declare("token_loss", idle)


pair_loss = declare("pair_loss")
selector = declare("selector")
advantage = declare("advantage")
token_reward = declare("token_reward")
estimator = declare("estimator")
measure = declare("measure")
reduction = declare("reduction")


def declaration(function: Callable[..., Any]) -> Declaration | None:
    """What a function declared; None for one that declared nothing, such as a user's."""
    found: Declaration | None = getattr(function, "__klent__", None)
    return found

"""What each objective is, declared where it stands.

    @token_loss(idle=without_advantage)
    def reinforce(logp, advantage, mask): ...

A recipe binds functions by their kind; nothing is guessed from names or annotations. A loss may also declare
where it is idle: the actions at which its gradient is 0 whatever the policy's numbers turn out to be. The
update leaves out the forward pass of completions that are idle throughout, and of no others.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

Kind = Literal[
    "token_loss",  # a loss per action, [B, T]
    "pair_loss",  # a loss per pair of completions, [B]
    "selector",  # a choice of actions, [B, T] bool
    "token_weight",  # a factor of each action's loss, [B, T]
    "advantage",  # how much better than expected, [B] or [B, T], from rewards
    "token_reward",  # a reward per action, [B, T]
    "estimator",  # a number made of streams, for an update or a log
    "measure",  # exact numbers of full distributions
    "reduction",  # the one place that divides
]
Idle = Callable[..., Tensor]
Needs = Callable[..., Collection[str]]
F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")


class Declaration(NamedTuple):
    """What a function of klent.objectives declares."""

    kind: Kind
    idle: Idle | None = None
    """Called by name with the streams and settings that the loss reads; what is not given has the loss's own
    default. ``[B, T]`` bool, True where idle, not read off the mask; it must not depend on ``logp`` or
    ``entropy``. None: never idle."""
    whole_sequences: bool = False
    """Whether the loss is one of whole sequences: it weighs prefixes itself, so that a step's importance weights
    do not multiply it, and reads every token of a completion."""
    weighs_itself: bool = False
    """Whether the ratio to the sampler is in the loss already: a step's importance weights do not multiply it,
    and leave out what they drop (a weight of 0)."""
    needs: Needs | None = None
    """Called by name with the settings: which of the parameters that may be None these settings cannot do without.
    The trainer fills those, and no others."""


def declare(
    kind: Kind,
    idle: Idle | None = None,
    *,
    whole_sequences: bool = False,
    weighs_itself: bool = False,
    needs: Needs | None = None,
) -> Callable[[F], F]:
    """A decorator that gives a function its kind."""

    def mark(function: F) -> F:
        silent = _with_defaults_of(function, idle) if idle is not None else None
        needed = _with_defaults_of(function, needs) if needs is not None else None
        declared = Declaration(kind, silent, whole_sequences, weighs_itself, needed)
        function.__klent__ = (function, declared)  # type: ignore[attr-defined]
        return function

    return mark


def _with_defaults_of(function: Callable[..., object], declared: Callable[..., T]) -> Callable[..., T]:
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return lambda **given: declared(**{**defaults, **given})


def token_loss(
    *, idle: Idle | None = None, whole_sequences: bool = False, weighs_itself: bool = False
) -> Callable[[F], F]:
    """A loss per action; see the module for ``idle``, and :class:`Declaration` for all of them."""
    return declare("token_loss", idle, whole_sequences=whole_sequences, weighs_itself=weighs_itself)


pair_loss = declare("pair_loss")
selector = declare("selector")
token_weight = declare("token_weight")
advantage = declare("advantage")
token_reward = declare("token_reward")
estimator = declare("estimator")
measure = declare("measure")
reduction = declare("reduction")


def declaration(function: Callable[..., object]) -> Declaration | None:
    """What this function declared itself; None for one that declared nothing, such as a user's.

    ``functools.wraps`` copies the mark to a wrapper, whose gradient may be another: that is no declaration.
    """
    marked: tuple[object, Declaration] | None = getattr(function, "__klent__", None)
    return marked[1] if marked is not None and marked[0] is function else None


def whole_sequences(function: Callable[..., object]) -> bool:
    """Whether a function declares that it is about whole completions; see :class:`Declaration`."""
    declared = declaration(function)
    return declared is not None and declared.whole_sequences


def weighs_itself(function: Callable[..., object]) -> bool:
    """Whether a function declares that the ratio to the sampler is in it; see :class:`Declaration`."""
    declared = declaration(function)
    return declared is not None and declared.weighs_itself


def needs(function: Callable[..., object], settings: Mapping[str, object]) -> Collection[str]:
    """Which parameters that may be None a function declares that it cannot do without; see :class:`Declaration`."""
    declared = declaration(function)
    return () if declared is None or declared.needs is None else declared.needs(**settings)


def without_advantage(advantage: Tensor, **_: object) -> Tensor:
    """``idle`` of a loss whose gradient is the advantage times a number: where the advantage is 0."""
    return advantage == 0


def without_coef(mask: Tensor, coef: float, **_: object) -> Tensor:
    """``idle`` of a loss whose gradient is ``coef`` times a number: everywhere or nowhere."""
    return torch.full_like(mask, coef == 0)

"""A function of a recipe called once on two completions of three tokens, before any model is loaded.

The function itself refuses a setting out of range, with its own reason; what it returns is checked here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from klent.config.binding import (
    TRAINED,
    Function,
    choices_of,
    is_per_token,
    missing_from,
    parameters_of,
    sides_of,
    streams_of,
)
from klent.objectives.kinds import Kind, declaration
from klent.objectives.returned import as_token_loss
from klent.streams.registry import REGISTRY, Stream
from klent.streams.sets import PER_ACTION, PER_COMPLETION

_TOKENS = (2, 3)
_COMPLETIONS = (4,)


def try_out(kind: Kind, function: Function, settings: Mapping[str, object]) -> str | None:
    """What is wrong with a function as one of this kind, found by calling it once; None if nothing."""
    if missing := missing_from(function):
        supplied = sorted(PER_COMPLETION if kind == "advantage" else PER_ACTION)
        return f"the trainer cannot supply `{missing[0]}`; it supplies {', '.join(supplied)}"
    reads = streams_of(function)
    if kind == "token_loss" and not reads & TRAINED:
        return "reads neither `logp` nor `entropy`, so it could train nothing"
    if kind in ("selector", "token_weight") and (choices := choices_of(function)):
        does = "a selector chooses from" if kind == "selector" else "a weight is made of"
        return f"reads `{min(choices)}`, a choice of tokens; {does} what the trainer has"
    shape = _shape(kind, function)
    if sides := sides_of(function, settings):
        data = {name: _of_side(stream, shape) for name, (stream, _) in sides.items()}
    elif kind == "advantage":
        data = {name: _of_unit(REGISTRY[stream], shape) for name, stream in parameters_of(function).items()}
    else:
        data = {name: _example(name, _TOKENS[:1]) for name in reads}
    try:
        values = function(**data, **settings)
        if kind == "token_loss":
            values = as_token_loss(values).loss
    except (ValueError, TypeError) as error:
        return str(error)
    except Exception as error:  # a user's function may raise anything
        return f"{type(error).__name__} when tried on two rows of three tokens: {error}"
    wrong = _wrong_values(kind, values, shape[:1] if kind == "pair_loss" else shape)
    if wrong is None and kind == "token_loss":
        wrong = _wrong_gradient(function, values, data, settings)
    return wrong


def _shape(kind: Kind, function: Function) -> tuple[int, ...]:
    """Of the example numbers: per token; per completion or pair where the function reads no tokens."""
    if kind == "advantage" and not is_per_token(function):
        return _COMPLETIONS
    return _TOKENS[:1] if kind == "pair_loss" and "mask_chosen" not in sides_of(function) else _TOKENS


def _of_side(stream: str, shape: tuple[int, ...]) -> Tensor:
    """A number of one side of pairs; a count of tokens where a loss per pair asks for the mask."""
    if stream == "mask" and len(shape) == 1:
        return torch.full(shape, 3.0)
    return _of_unit(REGISTRY[stream], shape)


def _wrong_values(kind: Kind, values: object, shape: tuple[int, ...]) -> str | None:
    if not isinstance(values, Tensor):
        return f"returned {type(values).__name__}, not a tensor"
    if tuple(values.shape) != shape:
        expected = {
            "advantage": f"one number per {'token' if len(shape) == 2 else 'completion'}",
            "pair_loss": "one number per pair, [B]",
            "selector": "True or False per token, [B, T]",
            "token_weight": "a factor per token, [B, T]",
        }.get(kind, "one per token, [B, T]; klent averages")
        return f"returned shape {list(values.shape)}, expected {list(shape)}: return {expected}"
    if kind == "selector" and values.dtype != torch.bool:
        return f"returned {values.dtype}, not a choice of tokens: return True and False, dtype torch.bool"
    if kind == "token_weight" and not values.is_floating_point():
        return f"returned {values.dtype}, not a weight: return a factor per token, floating point"
    return None


def _wrong_gradient(
    function: Function, loss: Tensor, data: Mapping[str, Tensor], settings: Mapping[str, object]
) -> str | None:
    """Whether the loss trains the policy, and is idle where it declares to be."""
    detached = "returned a loss without a gradient: something in it is detached"
    if not loss.requires_grad:
        return detached
    trained = [data[name] for name in sorted(TRAINED & data.keys())]
    gradients = torch.autograd.grad(loss.sum(), trained, allow_unused=True)
    moved = [gradient != 0 for gradient in gradients if gradient is not None]
    if not moved:
        return detached
    declared = declaration(function)
    if declared is None or declared.idle is None:
        return None
    try:
        idle = declared.idle(**data, **settings)
    except Exception as error:  # a user's, too
        return f"its `idle` raised {type(error).__name__}: {error}"
    if tuple(idle.shape) != _TOKENS or idle.dtype != torch.bool:
        return (
            f"its `idle` returned {idle.dtype} {list(idle.shape)}, expected True or False per token, [B, T]"
        )
    if any((idle & gradient).any() for gradient in moved):
        return "its `idle` is True at a token where it has a gradient: that token would not be trained"
    return None


def _example(name: str, completions: tuple[int, ...] = _COMPLETIONS) -> Tensor:
    """Numbers as a stream, or a choice of tokens, may have them; of so many completions."""
    if name not in REGISTRY:
        return torch.tensor([[True, False, False], [False, True, False]])
    stream = REGISTRY[name]
    shape = _TOKENS if stream.shape == "[B, T]" else completions
    values = _of_unit(stream, shape)
    return values.requires_grad_() if name in TRAINED else values


def _of_unit(stream: Stream, shape: tuple[int, ...]) -> Tensor:
    position = torch.arange(float(torch.Size(shape).numel())).view(shape)
    if stream.unit == "bool":
        return torch.ones(shape, dtype=torch.bool)
    if stream.unit == "index":
        return position.long() // 2
    if stream.unit == "reward":
        return 1 - position.remainder(3)  # 1, 0, -1, 1, ...
    if stream.unit == "ratio":
        return torch.full(shape, 0.9)
    offset = 0.01 * list(REGISTRY).index(stream.name)  # no two streams are equal
    return torch.full(shape, (-1.0 - offset) if stream.name.startswith("logp") else (0.8 + offset))

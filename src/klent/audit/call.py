"""Calling a loss of any author: supply the arguments that it names, and report what is wrong with it."""

import contextlib
import inspect
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from klent.audit.names import (
    POSITIONAL,
    STREAMS,
    TRAINED,
    is_alias,
    readable_by_position,
    stream_of,
    suggested,
)

#: a function that is audited; what it returns is checked after the call
LossFunction = Callable[..., object]

_KIND = inspect.Parameter


class LossProblem(Exception):
    """A loss that cannot be audited; the message is for its author."""


@dataclass(frozen=True)
class Slopes:
    """Derivatives of a loss, summed over the tokens of a batch, in its trained inputs at each token.

    Attributes:
        of: stream of ``TRAINED`` -> derivative in it, ``[B, T]``.
        dtype: dtype of the loss itself.
        changed: streams that the call changed in place.
    """

    of: Mapping[str, Tensor]
    dtype: torch.dtype
    changed: tuple[str, ...]


def sum_of_tokens(loss: Tensor, mask: Tensor) -> Tensor:
    """What is certified where no reduction is named: the sum over the tokens of each completion."""
    return loss.sum()


@dataclass(frozen=True)
class Loss:
    """A loss and how to call it.

    Attributes:
        function: returns a loss per token, ``[B, T]``, or a ``TokenLoss``.
        settings: keyword arguments that are not streams.
        wiring: parameter -> the stream that it takes; an int key is the position of the parameter.
        rows: number of completions that one call must be given, or None if any number will do.
        reduce: from the loss per token, ``[B, T]`` and 0 off the mask, and the mask to a scalar; a sum by default.
        by_row: whether that scalar is a sum over rows.
    """

    function: LossFunction
    settings: Mapping[str, object] = field(default_factory=dict)
    wiring: Mapping[str | int, str] = field(default_factory=dict)
    rows: int | None = None
    reduce: Callable[[Tensor, Tensor], Tensor] = sum_of_tokens
    by_row: bool = True

    @property
    def by_position(self) -> bool:
        """Whether its arguments were identified by position."""
        return any(isinstance(key, int) for key in self.wiring)

    @property
    def aliases(self) -> dict[str, str]:
        """Its parameters with a name that is not klent's -> the stream that they take."""
        return {key: stream for key, stream in self.wiring.items() if isinstance(key, str) and is_alias(key)}

    @property
    def reads(self) -> frozenset[str]:
        """The streams that it takes."""
        return frozenset(self.wiring.values())

    def slopes(self, streams: Mapping[str, Tensor], *, seed: int = 0) -> Slopes:
        """Call it once and differentiate.

        Args:
            streams: name -> ``[B, T]``. The loss gets copies.
            seed: seed of torch's global generator during the call, for losses that draw at random.

        Raises:
            LossProblem: it raised, or did not return a finite loss per token with a gradient.
        """
        shape = streams["mask"].shape
        leaves = {name: streams[name].clone().requires_grad_() for name in TRAINED if name in self.reads}
        with warnings.catch_warnings(), _seeded(seed), torch.enable_grad():
            warnings.simplefilter("ignore")
            arguments = {
                key: as_argument(key, leaves.get(stream, streams[stream]))
                for key, stream in self.wiring.items()
            }
            result = self._call(arguments)
            try:
                values = check_values(result, shape, streams["mask"])
                total = self._reduced(torch.where(streams["mask"], values, 0.0), streams["mask"])
            except (RuntimeError, NotImplementedError) as error:  # sparse, nested, on another device, ...
                raise LossProblem(f"returned a tensor that cannot be read: {_first_line(error)}") from error
            slopes = self._differentiate(total, leaves)
        changed = {
            stream
            for key, stream in self.wiring.items()
            if not _same(arguments[key].detach(), streams[stream])
        }
        ordered = tuple(name for name in STREAMS if name in changed)
        return Slopes(slopes, values.dtype, ordered)

    def _call(self, arguments: Mapping[str | int, Tensor]) -> object:
        positional = [arguments[key] for key in sorted(key for key in arguments if isinstance(key, int))]
        named = {key: value for key, value in arguments.items() if isinstance(key, str)}
        try:
            return self.function(*positional, **named, **self.settings)
        except Exception as error:  # any exception of the audited loss is reported, not raised
            raise LossProblem(f"raised {_describe(error, self.function)}") from error

    def _reduced(self, values: Tensor, mask: Tensor) -> Tensor:
        try:
            total: object = self.reduce(values, mask)
        except Exception as error:  # of the author's reduction
            raise LossProblem(f"cannot be reduced: {_describe(error, self.reduce)}") from error
        if not isinstance(total, Tensor) or total.ndim != 0:
            shape = f"shape {list(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
            raise LossProblem(f"cannot be reduced: the reduction returned {shape}, expected a scalar tensor")
        return total

    def _differentiate(self, total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except RuntimeError as error:
            raise LossProblem(f"cannot be differentiated: {_first_line(error)}") from error
        if all(gradient is None for gradient in gradients):
            raise LossProblem(
                f"does not depend on {_either(TRAINED)}, so it trains nothing. Compute it from one of them"
            )
        return {
            name: torch.zeros_like(leaf) if gradient is None else gradient.detach()
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
        }


def as_argument(parameter: str | int, value: Tensor) -> Tensor:
    """A copy of a stream for a parameter, so that a loss may work in place, as on the output of a model.

    A mask under the name of another library is int64, as in that library, where ``1 - mask`` is allowed.
    """
    integers = is_alias(parameter) and value.dtype == torch.bool
    return value.long() if integers else value.clone()


def wire(function: LossFunction, settings: Mapping[str, object]) -> Loss:
    """Match the parameters of a function with streams: by name, or four required ones by position.

    Raises:
        LossProblem: a required parameter is neither a stream nor set, or a setting is not taken.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise LossProblem(
            "has no signature that Python can read; wrap it in a function with named arguments"
        ) from None
    _check_settings(parameters, settings)
    named = {
        name: stream
        for name in parameters
        if name not in settings and (stream := stream_of(name)) is not None
    }
    ordered = [
        p.name for p in parameters.values() if p.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD)
    ]
    required = [name for name in ordered if parameters[name].default is _KIND.empty and name not in settings]
    if all(name in named for name in required):
        unnamed = {name for name in named if parameters[name].kind is _KIND.POSITIONAL_ONLY}
        wiring: dict[str | int, str] = {
            (ordered.index(name) if name in unnamed else name): stream for name, stream in named.items()
        }
    elif len(required) == 4 and required == ordered[:4] and readable_by_position(required):
        optional = {name: stream for name, stream in named.items() if name not in required}
        wiring = dict(enumerate(POSITIONAL))
        wiring.update(optional)
    else:
        raise LossProblem(_unknown(next(name for name in required if name not in named), named.values()))
    missing = [
        p.name
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in (*settings, *named)
    ]
    if missing:
        raise LossProblem(f"needs `{missing[0]}`; set it: {missing[0]}=...")
    return Loss(function, settings, wiring)


def check_values(result: object, shape: torch.Size, mask: Tensor) -> Tensor:
    """The loss per token from the result of a loss.

    Raises:
        LossProblem: it is not finite floats ``[B, T]`` with a gradient.
    """
    values = getattr(result, "loss", result[0] if isinstance(result, tuple) and result else result)
    if isinstance(values, int | float) and not isinstance(values, bool):
        values = torch.tensor(float(values))
    if not isinstance(values, Tensor):
        raise LossProblem(f"returned {type(values).__name__}, not a tensor with one loss per token, [B, T]")
    if values.ndim == 0 or values.shape == (1,):
        raise LossProblem(
            "returned a scalar, so its tokens cannot be told apart. Return one loss per token, [B, T], and leave the "
            "averaging to the trainer"
        )
    if values.shape != shape:
        advice = "; put a sequence's loss on one of its tokens" if values.shape == shape[:1] else ""
        if values.ndim > len(shape):
            advice = "; every argument is [B, T], advantages too, so leave out [:, None] and unsqueeze"
        raise LossProblem(
            f"returned shape {list(values.shape)} for logp of shape {list(shape)}; expected one loss per "
            f"token, [B, T]{advice}"
        )
    if not values.is_floating_point():
        raise LossProblem(f"returned {values.dtype}, not floating point; write loss.float()")
    broken = mask & ~values.detach().isfinite()
    if broken.any():
        kind = "NaN" if values.detach()[broken].isnan().any() else "inf"
        raise LossProblem(
            f"returned {kind} at {int(broken.sum())} of {int(mask.sum())} tokens; look for log(0), exp of a large "
            "log-ratio or a division by 0"
        )
    if not values.requires_grad:
        raise LossProblem(
            "returned a tensor without a gradient: as a loss it trains nothing. Something in it is detached "
            "or under no_grad; if it is meant as a reward per token, audit klent.audit.in_reward of it"
        )
    return values


def _unknown(parameter: str, supplied: Collection[str]) -> str:
    """What to do about a required argument that is neither a stream nor set."""
    stream = suggested(parameter)
    rename = f"if it is `{stream}`, give it that name; " if stream and stream not in supplied else ""
    return (
        f"needs `{parameter}`, which the auditor cannot supply: {rename}if it is a setting, set it "
        f"({parameter}=...). The auditor supplies {', '.join(STREAMS)}, also under names such as "
        f"old_log_probs or response_mask (docs/audit.md). Four required arguments are read by position, as "
        f"({', '.join(POSITIONAL)}), if none of them names a stream or each resembles the one in its place"
    )


def _check_settings(parameters: Mapping[str, inspect.Parameter], settings: Mapping[str, object]) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in settings:
        if key not in parameters:
            accepted = [name for name in parameters if stream_of(name) is None]
            raise LossProblem(
                f"takes no `{key}`; it takes {', '.join(accepted) if accepted else 'no settings'}"
            )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU generator seeded, and restored afterwards. (``torch.manual_seed`` is slow without a GPU.)"""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _same(given: Tensor, original: Tensor) -> bool:
    """Whether an argument still equals its stream after the call; NaN equals NaN."""
    if given.shape != original.shape:
        return False
    return torch.equal(given.nan_to_num(0.5), original.to(given.dtype).nan_to_num(0.5))


def _describe(error: Exception, function: LossFunction) -> str:
    """``ValueError: coef is negative (my.py:12)``: the innermost line in the file of the function."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    in_file = [f for f in frames if code is not None and f.filename == code.co_filename]
    line = f" ({Path(in_file[-1].filename).name}:{in_file[-1].lineno})" if in_file else ""
    return f"{type(error).__name__}: {_first_line(error)}{line}"


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]

"""Calling a loss that somebody else wrote: give it what it asks for and say plainly what is wrong with it."""

import contextlib
import inspect
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: what the auditor can hand to a loss; ``mask`` is bool, the others float ``[B, T]``
STREAMS = ("logp", "logp_old", "logp_gen", "logp_ref", "advantage", "entropy", "mask")
#: what four unnamed arguments are
POSITIONAL = ("logp", "logp_old", "logp_ref", "mask")
#: parts of a name that fit a stream, where some of four arguments are named and some are not
HINTS = {
    "logp": ("log", "prob", "lp"),
    "logp_old": ("old", "behav", "sampl", "gen"),
    "logp_ref": ("ref",),
    "mask": ("mask",),
}
#: streams with respect to which a loss is differentiated
TRAINED = ("logp", "entropy")

_KIND = inspect.Parameter


class LossProblem(Exception):
    """A loss that cannot be audited; the message is for its author."""


@dataclass(frozen=True)
class Slopes:
    """Derivatives of a loss, summed over the tokens of a batch, in what it was given for each token.

    Attributes:
        logp: in the log-probabilities, ``[B, T]``.
        entropy: in the entropies, ``[B, T]``.
        dtype: of the loss itself.
        changed: streams that the call changed in place.
    """

    logp: Tensor
    entropy: Tensor
    dtype: torch.dtype
    changed: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """A loss and how to call it.

    Attributes:
        function: returns a loss per token, ``[B, T]``, or a ``TokenLoss``.
        settings: keyword arguments that are not streams.
        wiring: its parameter -> the stream that it is given; by position where the key is a number.
        rows: completions that it must be given in one call, or None if any number will do.
    """

    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    wiring: Mapping[str | int, str] = field(default_factory=dict)
    rows: int | None = None

    @property
    def by_position(self) -> bool:
        """Whether its arguments were told apart by their place alone."""
        return any(isinstance(key, int) for key in self.wiring)

    @property
    def reads(self) -> frozenset[str]:
        """The streams that it takes."""
        return frozenset(self.wiring.values())

    def slopes(self, streams: Mapping[str, Tensor], *, seed: int = 0) -> Slopes:
        """Call it once and differentiate.

        Args:
            streams: name -> ``[B, T]``. The loss gets copies.
            seed: of torch's global generator during the call, for losses that draw at random.

        Raises:
            LossProblem: it raised, or returned something that is not a finite loss per token with a gradient.
        """
        shape = streams["mask"].shape
        leaves = {name: streams[name].clone().requires_grad_() for name in TRAINED}
        with warnings.catch_warnings(), _seeded(seed), torch.enable_grad():
            warnings.simplefilter("ignore")
            # copies, so that a loss may work in place, as it may on a model's output
            given = {name: (leaves.get(name, value)).clone() for name, value in streams.items()}
            result = self._call(given)
            try:
                values = check_values(result, shape, streams["mask"])
                total = torch.where(streams["mask"], values, 0.0).sum()
            except (RuntimeError, NotImplementedError) as error:  # sparse, nested, on another device, ...
                raise LossProblem(f"returned a tensor that cannot be read: {_first_line(error)}") from error
            slopes = self._differentiate(total, leaves)
        changed = tuple(
            name for name in STREAMS if name in self.reads and not _same(given[name].detach(), streams[name])
        )
        return Slopes(slopes["logp"], slopes["entropy"], values.dtype, changed)

    def _call(self, given: Mapping[str, Tensor]) -> Any:
        positional = [given[self.wiring[key]] for key in sorted(k for k in self.wiring if isinstance(k, int))]
        named = {key: given[stream] for key, stream in self.wiring.items() if isinstance(key, str)}
        try:
            return self.function(*positional, **named, **self.settings)
        except Exception as error:  # whatever somebody's loss raises is the finding
            raise LossProblem(f"raised {_describe(error, self.function)}") from error

    def _differentiate(self, total: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        except RuntimeError as error:
            raise LossProblem(f"cannot be differentiated: {_first_line(error)}") from error
        if all(slope is None for slope in found):
            raise LossProblem("does not depend on logp or entropy, so it trains nothing")
        return {
            name: torch.zeros_like(leaf) if slope is None else slope.detach()
            for (name, leaf), slope in zip(leaves.items(), found, strict=True)
        }


def wire(function: Callable[..., Any], settings: Mapping[str, Any]) -> Loss:
    """Match a function's parameters with streams: by name, or four required ones by position.

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
    named = {name: name for name in STREAMS if name in parameters and name not in settings}
    ordered = [
        p.name for p in parameters.values() if p.kind in (_KIND.POSITIONAL_ONLY, _KIND.POSITIONAL_OR_KEYWORD)
    ]
    due = [name for name in ordered if parameters[name].default is _KIND.empty and name not in settings]
    if all(name in STREAMS for name in due):
        by_place = {p for p in named if parameters[p].kind is _KIND.POSITIONAL_ONLY}
        wiring: dict[str | int, str] = {(ordered.index(n) if n in by_place else n): n for n in named}
    elif len(due) == 4 and due == ordered[:4] and _by_position(due):
        wiring = {**dict(enumerate(POSITIONAL)), **{n: n for n in named if n not in due}}
    else:
        foreign = next(name for name in due if name not in STREAMS)
        raise LossProblem(
            f"needs `{foreign}`, which the auditor cannot supply: it supplies {', '.join(STREAMS)}, and "
            f"takes settings by name ({foreign}=...). Four arguments with names of your own are read as "
            f"({', '.join(POSITIONAL)})"
        )
    missing = [
        p.name
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in (*settings, *STREAMS)
    ]
    if missing:
        raise LossProblem(f"needs `{missing[0]}`; set it: {missing[0]}=...")
    return Loss(function, settings, wiring)


def check_values(result: Any, shape: torch.Size, mask: Tensor) -> Tensor:
    """The loss per token out of what a loss returned.

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
            "returned a scalar: it averages before the auditor can see its tokens. Return one loss per "
            "token, [B, T], and leave the averaging to the trainer"
        )
    if values.shape != shape:
        per_sequence = "; put a sequence's loss on one of its tokens" if values.shape == shape[:1] else ""
        raise LossProblem(
            f"returned shape {list(values.shape)} for logp of shape {list(shape)}; one loss per token was "
            f"due, [B, T]{per_sequence}"
        )
    if not values.is_floating_point():
        raise LossProblem(f"returned {values.dtype}, not floating point")
    broken = mask & ~values.detach().isfinite()
    if broken.any():
        kind = "NaN" if values.detach()[broken].isnan().any() else "inf"
        raise LossProblem(f"returned {kind} at {int(broken.sum())} of {int(mask.sum())} tokens")
    if not values.requires_grad:
        raise LossProblem(
            "returned a tensor without a gradient: as a loss it trains nothing. Something in it is detached "
            "or under no_grad; if it is meant as a reward per token, audit klent.audit.in_reward of it"
        )
    return values


def _check_settings(parameters: Mapping[str, inspect.Parameter], settings: Mapping[str, Any]) -> None:
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in settings:
        if key not in parameters:
            own = [name for name in parameters if name not in STREAMS]
            raise LossProblem(f"takes no `{key}`; it takes {', '.join(own) if own else 'no settings'}")


def _by_position(names: list[str]) -> bool:
    """Whether four names can be ``POSITIONAL``: none of them says anything, or none says otherwise."""
    if not set(names) & set(STREAMS):
        return True
    return all(
        name == due or (name not in STREAMS and any(hint in name for hint in HINTS[due]))
        for name, due in zip(names, POSITIONAL, strict=True)
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU's generator seeded, and afterwards as it was. (``torch.manual_seed`` is slow without a GPU.)"""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(0.5), other.nan_to_num(0.5))


def _describe(error: Exception, function: Callable[..., Any]) -> str:
    """``ValueError: coef is negative (my.py:12)``: the innermost line of the function's own file."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if code is not None and f.filename == code.co_filename]
    place = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {_first_line(error)}{place}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]

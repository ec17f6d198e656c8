"""Whether a loss depends on what it should not (padding, batch split, dtype), or changes its inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from klent.audit.call import Loss, LossProblem, Slopes
from klent.audit.worlds import Scene, sample

#: two results this close, relative to the larger, are the same
SAME = 1e-9

Streams = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sensitivity:
    """How a loss reacts to changes that should not matter.

    Attributes:
        padding: ``ignored``; ``nan`` if a NaN off the mask reaches the gradient, though other values there do
            not matter; ``read`` if other values, or more padding, change the gradient of a token on the mask.
        split: ``additive`` if the completions of a batch can be passed in any number of parts,
            ``dependent`` if the gradient of a completion depends on the others in the call.
        random: two calls on the same numbers differ.
        changed: inputs that it overwrites.
        float32: relative error of its gradient when computed in float32, against float64 at the same
            numbers; NaN if that fails.
        bfloat16: the same for bfloat16.
        dtype: dtype of its result for float64 inputs, if that is not float64.
    """

    padding: Literal["ignored", "nan", "read"]
    split: Literal["additive", "dependent"]
    random: bool
    changed: tuple[str, ...]
    float32: float
    bfloat16: float
    dtype: str | None


def sensitivity(loss: Loss, scene: Scene) -> Sensitivity:
    """Call a loss on the completions of a scene with padding, and again with changes that should not matter.

    Raises:
        LossProblem: it cannot be evaluated at all.
    """
    streams = sample(scene).streams
    if loss.rows is not None:
        streams = {name: stream[1 : 1 + loss.rows] for name, stream in streams.items()}
    plain = loss.slopes(streams)
    random = not _close(plain, loss.slopes(streams, seed=1))
    return Sensitivity(
        padding=_padding(loss, streams, plain),
        split="dependent" if loss.rows is not None else _split(loss, streams, plain),
        random=random,
        changed=plain.changed,
        float32=_rounding(loss, streams, torch.float32),
        bfloat16=_rounding(loss, streams, torch.bfloat16),
        dtype=None if plain.dtype == torch.float64 else str(plain.dtype).removeprefix("torch."),
    )


def _padding(loss: Loss, streams: Streams, plain: Slopes) -> Literal["ignored", "nan", "read"]:
    junk = {
        name: _off_mask(streams, stream, -1.7 - 0.3 * n) for n, (name, stream) in enumerate(streams.items())
    }
    wider = {name: torch.nn.functional.pad(stream, (0, 2)) for name, stream in junk.items()}
    for changed in (junk, wider):
        slopes = _try(loss, changed)
        if slopes is None or not _close(plain, _cut(slopes, streams["mask"].shape[1])):
            return "read"
    missing = {name: _off_mask(streams, stream, math.nan) for name, stream in streams.items()}
    slopes = _try(loss, missing)
    return "ignored" if slopes is not None and _close(plain, slopes) else "nan"


def _split(loss: Loss, streams: Streams, plain: Slopes) -> Literal["additive", "dependent"]:
    """Each row alone, in the original order, against all rows at once; then the first two together."""
    count = len(streams["mask"])
    for parts in ([slice(n, n + 1) for n in range(count)], [slice(0, 2), slice(2, count)]):
        results = [_try(loss, {name: stream[part] for name, stream in streams.items()}) for part in parts]
        slopes = [result for result in results if result is not None]
        if len(slopes) < len(results):
            return "dependent"
        joined = {name: torch.cat([s.of[name] for s in slopes]) for name in plain.of}
        if not _close(plain, replace(plain, of=joined)):
            return "dependent"
    return "additive"


def _rounding(loss: Loss, streams: Streams, dtype: torch.dtype) -> float:
    low = {name: s.to(dtype) if s.is_floating_point() else s for name, s in streams.items()}
    same = {name: s.double() if s.is_floating_point() else s for name, s in low.items()}
    rounded, exact = _try(loss, low), _try(loss, same)
    if rounded is None or exact is None:
        return math.nan
    return _distance(exact, replace(rounded, of={name: s.double() for name, s in rounded.of.items()}))


def _off_mask(streams: Streams, stream: Tensor, value: float) -> Tensor:
    return stream if stream.dtype == torch.bool else stream.masked_fill(~streams["mask"], value)


def _cut(slopes: Slopes, width: int) -> Slopes:
    """The first ``width`` positions."""
    return replace(slopes, of={name: slope[:, :width] for name, slope in slopes.of.items()})


def _try(loss: Loss, streams: Streams) -> Slopes | None:
    try:
        return loss.slopes(streams)
    except LossProblem:
        return None


def _close(one: Slopes, other: Slopes) -> bool:
    return _distance(one, other) <= SAME


def _distance(one: Slopes, other: Slopes) -> float:
    """Largest difference relative to the largest slope; inf if either has a NaN."""
    expected = torch.stack(list(one.of.values()))
    gap = (expected - torch.stack([other.of[name] for name in one.of])).abs().max().item()
    largest = expected.abs().max().item()
    return math.inf if math.isnan(gap) else gap / largest if largest else gap

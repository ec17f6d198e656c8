"""Where a loss is flat: log-ratios at which a token has no gradient, as behind a clamp or a clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from klent.audit.call import Loss, LossProblem, sum_of_tokens
from klent.audit.names import TRAINED
from klent.audit.worlds import Scene, equal_lengths, far_apart, sample, unequal_lengths

Other = Literal["logp_ref", "logp_old"]
#: log-ratios at which a loss is tried, in nats, and the steps by which the ends of an interval are narrowed
REACH, STEP, NARROWING = 44.0, 0.02, 16
#: log-probability of the token that is tried: low, so that no log-ratio makes another positive
LOGP = -50.0


@dataclass(frozen=True)
class Flat:
    """An interval of log-ratios at which a loss has no slope, tried on one token with all else held fixed.

    Attributes:
        other: the log-ratio is ``logp`` minus this stream.
        advantage: the advantage of the token: 0 for a ratio to the reference, 1 or -1 for one to the behaviour.
        low: from here, nats; -inf if the loss is flat as far as it was tried.
        high: to here; inf likewise.
        share: the share of the tokens of the small worlds, as they are sampled off-policy, that lies in it (those
            with an advantage of that sign).
        far_share: the same for policies that hardly agree.
    """

    other: Other
    advantage: float
    low: float
    high: float
    share: float
    far_share: float


def flat_intervals(loss: Loss) -> tuple[Flat, ...]:
    """The intervals of log-ratios to the reference, and to the behaviour policy, where a loss is flat.

    Empty for a loss whose rows depend on each other, and for one that is flat everywhere or cannot be tried.
    """
    if loss.rows is not None:
        return ()
    loss = replace(loss, reduce=sum_of_tokens)
    found: list[Flat] = []
    if "logp_ref" in loss.reads:
        found += _intervals(loss, "logp_ref", 0.0)
    if loss.reads & {"logp_old", "logp_gen"}:
        signs = (1.0, -1.0) if "advantage" in loss.reads else (0.0,)
        for sign in signs:
            found += _intervals(loss, "logp_old", sign)
    return tuple(found)


def _intervals(loss: Loss, other: Other, advantage: float) -> list[Flat]:
    tried = torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=torch.float64)
    flat = _is_flat(loss, other, advantage, tried)
    if flat is None or bool(flat.all()):
        return []
    edges = torch.diff(
        flat.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int)
    )
    found = []
    for start, stop in zip((edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0], strict=True):
        first, last = int(start), int(stop) - 1
        if first == last:  # a single point, such as the minimum of k3
            continue
        low, high = -torch.inf, torch.inf
        if first > 0:
            low = _edge(loss, other, advantage, tried[first - 1].item(), tried[first].item())
        if last < len(tried) - 1:
            high = _edge(loss, other, advantage, tried[last + 1].item(), tried[last].item())
        near, far = (_share(scenes, other, advantage, low, high) for scenes in (_NEAR, (far_apart,)))
        found.append(Flat(other, advantage, low, high, near, far))
    return found


def _edge(loss: Loss, other: Other, advantage: float, steep: float, flat: float) -> float:
    """Where the loss becomes flat between a point where it is not and one where it is."""
    for _ in range(NARROWING):
        middle = (steep + flat) / 2
        found = _is_flat(loss, other, advantage, torch.tensor([middle], dtype=torch.float64))
        steep, flat = (steep, middle) if found is not None and bool(found) else (middle, flat)
    return flat


def _is_flat(loss: Loss, other: Other, advantage: float, log_ratio: Tensor) -> Tensor | None:
    """At which log-ratios no trained input of a token has a slope, ``[B]``; None if the loss cannot be called."""
    logp = torch.full_like(log_ratio, LOGP)[:, None]
    moved = logp - log_ratio[:, None]
    old = moved if other == "logp_old" else logp
    streams = {
        "logp": logp,
        "logp_old": old,
        "logp_gen": old,
        "logp_ref": moved if other == "logp_ref" else logp,
        "advantage": torch.full_like(logp, advantage),
        "distance": torch.zeros_like(logp),
        "mask": torch.ones_like(logp, dtype=torch.bool),
        **{name: torch.ones_like(logp) for name in TRAINED if name != "logp"},
    }
    try:
        slopes = loss.slopes(streams).of
    except LossProblem:
        return None
    return torch.stack([slope[:, 0] == 0 for slope in slopes.values()]).all(dim=0)


_NEAR = (equal_lengths, unequal_lengths)


def _share(
    scenes: Sequence[Callable[[], Sequence[Scene]]], other: Other, advantage: float, low: float, high: float
) -> float:
    """The share of sampled tokens, with an advantage of this sign, whose log-ratio lies in an interval."""
    inside = total = 0.0
    for scene in (scene for family in scenes for scene in family()):
        listed = sample(scene)
        streams = listed.streams
        counted = streams["mask"] & (streams["advantage"] * advantage >= 0)
        log_ratio = streams["logp"] - streams[other]
        within = counted & (log_ratio >= low) & (log_ratio <= high)
        inside += (listed.probability @ within.sum(dim=1).double()).item()
        total += (listed.probability @ counted.sum(dim=1).double()).item()
    return inside / total if total else 0.0

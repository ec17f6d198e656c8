"""Why a sampler's log-probabilities are not the trainer's: the fault whose numbers they are.

Each known fault says which log-probabilities it would have reported for the very tokens that were sampled, and
these are computed from the trainer's own logits. The fault that leaves least of the gap is named; where none
leaves little, none is.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from klent.rollout.sampling import keep_tokens

EXPLAINED = 0.25  # a fault is named where it leaves less than this share of the gap
SHARPEST, FLATTEST = 0.05, 20.0  # temperatures that are looked at


class Reading(NamedTuple):
    """Tokens that a sampler reported, beside what the trainer says of the same positions.

    Attributes:
        logits: the trainer's, before temperature, ``[N, V]``.
        tokens: ``[N]``.
        reported: the sampler's log-probability of each, nats, ``[N]``.
        lengths: tokens of each completion, in their order.
    """

    logits: Tensor
    tokens: Tensor
    reported: Tensor
    lengths: tuple[int, ...]

    def logp(self, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Tensor:
        """The trainer's log-probability of each token under such a sampler, nats, ``[N]``."""
        scaled = self.logits.float() / temperature
        if top_k or top_p < 1.0:
            kept = keep_tokens(scaled - scaled.amax(dim=-1, keepdim=True), top_p=top_p, top_k=top_k)
            scaled = scaled.masked_fill(~kept, -math.inf)
        chosen = scaled.gather(1, self.tokens[:, None].to(scaled.device))[:, 0]
        return (chosen - scaled.logsumexp(dim=-1)).cpu()

    def gap(self, expected: Tensor) -> Tensor:
        """``|log p|`` apart at each token, nats, ``[N]``; 0 where both are impossible."""
        apart = (self.reported.float().cpu() - expected).abs()
        return torch.where(self.reported.cpu() == expected, torch.zeros_like(apart), apart)


class Fault(NamedTuple):
    """A fault by name, and what it is in words."""

    cause: str
    sentence: str


class Sampler(NamedTuple):
    """What the trainer takes the sampler to do: its temperature and truncation."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def explain(reading: Reading, taken: Sampler, *, tolerance: float) -> Fault | None:
    """The fault of sampling that explains the gap between a sampler and what it is taken to be.

    Args:
        reading: the tokens and both sides' numbers.
        taken: what the trainer computes with.
        tolerance: nats of mean gap that rounding makes, so that a fault which leaves less is named too.

    Returns:
        The fault; None where no fault of indexing, temperature or truncation leaves little of the gap.
    """
    gap = _mean(reading.gap(reading.logp(*taken)))
    best, named = max(tolerance, EXPLAINED * gap), None
    for finder in (_shifted, _warmer, _truncated):
        for left, fault in finder(reading, taken):
            if left < min(best, gap):
                best, named = left, fault
    return named


def _shifted(reading: Reading, taken: Sampler) -> Iterator[tuple[float, Fault]]:
    """Numbers that stand one token too early or too late."""
    expected = reading.logp(*taken).split(list(reading.lengths))
    reported = reading.reported.float().cpu().split(list(reading.lengths))
    pairs = [(r, e) for r, e in zip(reported, expected, strict=True) if len(r) > 1]
    if not pairs:
        return
    for where, apart in (
        ("one token late", [r[1:] - e[:-1] for r, e in pairs]),
        ("one token early", [r[:-1] - e[1:] for r, e in pairs]),
    ):
        said = f"each number is that of the neighbouring token: the log-probabilities are {where}"
        yield _mean(torch.cat(apart).abs()), Fault("wrong indexing", said)


def _warmer(reading: Reading, taken: Sampler) -> Iterator[tuple[float, Fault]]:
    """Another temperature: a grid, then a search between its neighbours."""

    def left(log_temperature: float) -> float:
        return _mean(reading.gap(reading.logp(math.exp(log_temperature), taken.top_p, taken.top_k)))

    low, high = math.log(SHARPEST), math.log(FLATTEST)
    grid = [low + (high - low) * k / 24 for k in range(25)]
    start = min(range(25), key=lambda k: left(grid[k]))
    temperature = math.exp(_lowest(left, grid[max(start - 1, 0)], grid[min(start + 1, 24)]))
    if abs(math.log(temperature / taken.temperature)) > 0.01:
        said = f"the sampler's numbers are those of temperature {temperature:.3g}, and the trainer's of "
        yield left(math.log(temperature)), Fault("wrong temperature", f"{said}{taken.temperature:.3g}")


def _truncated(reading: Reading, taken: Sampler) -> Iterator[tuple[float, Fault]]:
    """A sampler that keeps fewer tokens than it is taken to, or more; how many follows from the mass kept."""
    if taken.top_p < 1.0 or taken.top_k:
        said = (
            "the sampler reports numbers before truncation (top_p, top_k), and the run expects them after it"
        )
        yield _mean(reading.gap(reading.logp(taken.temperature))), Fault("wrong truncation", said)
    whole = reading.logp(taken.temperature)
    mass = (whole - reading.reported.float().cpu()).exp().clamp(max=1.0)  # that the kept tokens hold
    ordered = (reading.logits.float().cpu() / taken.temperature).softmax(-1).sort(-1, descending=True)[0]
    reached = ordered.cumsum(-1)
    count = (reached - mass[:, None]).abs().argmin(-1)  # of tokens kept, less one
    cut = mass < 1 - 1e-4
    if not cut.any():
        return
    most = int(count.max()) + 1
    said = f"the sampler keeps the {most} most likely tokens (top_k)"
    left = _mean(reading.gap(reading.logp(taken.temperature, 1.0, most)))
    yield left, Fault("wrong truncation", said)
    before = reached.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    share = float((torch.where(count > 0, before, 0.0).max() + reached.gather(1, count[:, None]).min()) / 2)
    share = min(max(share, 1e-6), 1.0)
    said = f"the sampler keeps the most likely tokens that hold {share:.3g} of the probability (top_p)"
    left = _mean(reading.gap(reading.logp(taken.temperature, share, 0)))
    yield left, Fault("wrong truncation", said)


def _lowest(of: Callable[[float], float], low: float, high: float, rounds: int = 30) -> float:
    """Where a function with one valley is lowest, by thirds of the interval."""
    for _ in range(rounds):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if of(left) < of(right) else (left, high)
    return (low + high) / 2


def _mean(values: Tensor) -> float:
    value = float(values.mean())
    return value if math.isfinite(value) else math.inf

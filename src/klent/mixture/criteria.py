"""What singles out one mixture: an equation in s = 1 - alpha, or a maximum."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent.mixture.family import Family

Criterion = Literal["chernoff", "snr", "kl_budget", "entropy", "ess"]
CRITERIA = ("chernoff", "snr", "kl_budget", "entropy", "ess")

#: value and slope of the equation's left side at s, ``[R]`` float64
Equation = Callable[[Tensor], tuple[Tensor, Tensor]]


class Root(NamedTuple):
    """Where an equation is met, or a maximum is, ``[R]`` each."""

    s: Tensor
    residual: Tensor
    iterations: Tensor


def equation(family: Family, criterion: Criterion, value: float) -> Equation:
    """The left side of ``criterion``, 0 where it is met; increasing in s, but for ``entropy``."""

    def chernoff(s: Tensor) -> tuple[Tensor, Tensor]:
        at = family.sweep(s)
        return at.mean, at.variance

    def kl_budget(s: Tensor) -> tuple[Tensor, Tensor]:
        at = family.sweep(s)
        return s * at.mean - at.log_z - value, s * at.variance

    def entropy(s: Tensor) -> tuple[Tensor, Tensor]:
        at = family.sweep(s)
        return at.entropy - value, at.slope

    def ess(s: Tensor) -> tuple[Tensor, Tensor]:
        # Σ policy²/q = Z(s)·Z(-s): the weights' second moment is a sum over the same family.
        forth, back = family.sweep(s), family.sweep(-s)
        return forth.log_z + back.log_z + math.log(value), forth.mean - back.mean

    equations: dict[str, Equation] = {
        "chernoff": chernoff, "kl_budget": kl_budget, "entropy": entropy, "ess": ess
    }  # fmt: skip
    return equations[criterion]


def increasing_root(f: Equation, rows: Tensor, tolerance: Tensor, limit: int) -> Root:
    """Newton's method from 1/2 inside a bracket, for every row at once; an end where no s in [0, 1] solves.

    Args:
        f: increasing in s.
        rows: ``[R]``, only its shape and device count.
        tolerance: largest left side, nats, ``[R]``.
        limit: most sweeps.
    """
    low, high = torch.zeros_like(rows), torch.ones_like(rows)
    return bracketed_root(f, low, high, f(low)[0], f(high)[0], tolerance, limit)


def bracketed_root(
    f: Equation, low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor, tolerance: Tensor, limit: int
) -> Root:
    """The same between two points whose left sides are given; ``high`` may be below ``low``."""
    s = (low + high) / 2
    flat = (at_low.abs() <= tolerance) & (at_high.abs() <= tolerance)
    below, above = (at_low >= 0) & ~flat, (at_high <= 0) & ~flat
    first, last = low, high
    iterations = torch.full_like(s, 2)
    value = torch.full_like(s, math.inf)
    done = below | above
    for _ in range(limit):
        if done.all():
            break
        value_now, slope = f(s)
        value = torch.where(done, value, value_now)
        iterations += ~done
        done |= value.abs() <= tolerance
        low, high = torch.where(value < 0, s, low), torch.where(value < 0, high, s)
        step = s - value / slope
        inside = (step - low) * (step - high) < 0  # False for nan, too
        s = torch.where(done, s, torch.where(inside, step, (low + high) / 2))
    s = torch.where(below, first, torch.where(above, last, s))
    residual = torch.where(below, at_low, torch.where(above, at_high, value)).abs()
    return Root(s, residual, iterations)


def nearest_crossing(f: Equation, rows: Tensor, tolerance: Tensor, limit: int, points: int = 17) -> Root:
    """A root, of those that a grid can see the nearest to s = 0; the best of the grid where there is none."""
    grid = torch.linspace(0, 1, points, dtype=rows.dtype, device=rows.device)
    values = torch.stack([f(s.expand_as(rows))[0] for s in grid])
    crosses = values[:-1].sign() * values[1:].sign() <= 0
    first = crosses.int().argmax(0)
    missed = values.abs()
    best = (missed <= missed.amin(0) + tolerance).int().argmax(0)
    left, right = grid[first], grid[first + 1]
    at = values.gather(0, torch.stack([first, first + 1]))
    rising = at[0] <= at[1]
    # Turned around where the left side falls, so that it rises from ``low`` to ``high``.
    low, high = torch.where(rising, left, right), torch.where(rising, right, left)
    root = bracketed_root(f, low, high, at.amin(0), at.amax(0), tolerance, limit)
    some = crosses.any(0)
    residual = torch.where(some, root.residual, missed.gather(0, best.unsqueeze(0))[0])
    return Root(torch.where(some, root.s, grid[best]), residual, root.iterations + points - 2)


def snr_maximum(family: Family, reward: Tensor | None, points: int = 33, shrinks: int = 30) -> Root:
    """The s in [0, 1] with the largest signal-to-noise ratio: a grid, then golden sections.

    Ties go to the smallest s, the policy. The residual is the width of the last section.
    """
    r = family.ratio.double() if reward is None else reward.double()
    rows = r[:, 0]
    grid = torch.linspace(0, 1, points, dtype=torch.float64, device=r.device)
    values = torch.stack([_snr(family, r, s.expand_as(rows)) for s in grid])
    # What differs by rounding alone is a tie.
    largest = values.amax(0)
    near = values >= largest - 1e-9 * largest.abs()
    best = grid[near.int().argmax(0)]
    golden, step = (math.sqrt(5) - 1) / 2, 1 / (points - 1)
    low, high = (best - step).clamp_min(0), (best + step).clamp_max(1)
    for _ in range(shrinks):
        first, second = high - golden * (high - low), low + golden * (high - low)
        left = _snr(family, r, first) >= _snr(family, r, second)
        low, high = torch.where(left, low, first), torch.where(left, second, high)
    middle = (low + high) / 2
    at_best = _snr(family, r, best)
    better = _snr(family, r, middle) > at_best + 1e-12 * at_best.abs()
    s = torch.where(better, middle, best)
    return Root(s, high - low, torch.full_like(s, points + 2 * shrinks + 2))


def _snr(family: Family, r: Tensor, s: Tensor) -> Tensor:
    """Signal over noise of the mixtures at s, up to a positive factor that does not depend on s."""
    base, ratio = family.base.double(), family.ratio.double()
    policy, target = base.exp(), (base + ratio).exp()
    exponent = torch.where(base.isfinite(), -s.unsqueeze(-1) * ratio, -torch.inf)
    # The ratio does not feel a common factor of the weights: they are scaled to what can be held.
    scale = (exponent + torch.maximum(base, base + ratio)).amax(-1, keepdim=True)
    weighted = torch.where(base.isfinite(), (exponent - scale).exp() * r, 0.0)
    mean = (policy * weighted).sum(-1)
    signal = (target * weighted).sum(-1) - mean
    noise = (policy * (weighted - mean.unsqueeze(-1)).square()).sum(-1)
    return torch.where(noise > 0, signal / noise.clamp_min(1e-300).sqrt(), 0.0)

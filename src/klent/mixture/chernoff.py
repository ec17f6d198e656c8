"""The Chernoff point of long rows, found while a few rows of logits lie in cache.

With A = exp(policy/2) and B = exp(target/2) the sums of A², A·B and B² are the partition functions at s = 0,
1/2 and 1 for two exponentials a token. These and three moments of l at 1/2 fix a polynomial of degree 5 for
log Z, whose minimum is off by 1e-3 to 1e-10; a sweep there, where one is needed, leaves nothing to improve.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: numbers in one tile for each thread: a handful of such buffers stay in the second and third level of cache
TILE = 160_000
#: 2 to the power of this times x is exp(x / 2); exp2 is several times faster than exp on CPUs
_HALF = math.log2(math.e) / 2
_SWEEPS = 6
_EPS = torch.finfo(torch.float32).eps


def allowed_residual(tolerance: float, variance: float) -> float:
    """Nats: ``tolerance`` in units of l's spread, and what the last bit of a float32 alpha amounts to."""
    return tolerance * max(1.0, math.sqrt(variance)) + _EPS * variance


class Found(NamedTuple):
    """A Chernoff point: place, log Z, residual, sweeps, and ``sure`` where it is accurate."""

    s: float
    log_z: float
    residual: float
    sweeps: int
    sure: bool


class _Curve(NamedTuple):
    """log Z, less the line between its ends, as a polynomial: ``c[k]`` belongs to (s - 1/2)^k."""

    c: tuple[float, float, float, float, float, float]

    def value(self, t: float) -> float:
        c0, c1, c2, c3, c4, c5 = self.c
        return c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * c5))))

    def slope(self, t: float) -> float:
        _, c1, c2, c3, c4, c5 = self.c
        return c1 + t * (2 * c2 + t * (3 * c3 + t * (4 * c4 + t * 5 * c5)))

    def second(self, t: float) -> float:
        _, _, c2, c3, c4, c5 = self.c
        return 2 * c2 + t * (6 * c3 + t * (12 * c4 + t * 20 * c5))

    def lowest(self) -> float:
        t = 0.0
        for _ in range(8):
            bend = self.second(t)
            if bend <= 0:
                return 0.0
            t = min(max(t - self.slope(t) / bend, -0.49), 0.49)
        return t


class _Point:
    """One row's search: from the sums of the first sweep to a place that is accurate enough."""

    def __init__(
        self, tolerance: float, at_0: float, at_1: float, at_half: float, m1: float, m2: float, m3: float
    ) -> None:
        self.tolerance = tolerance
        self.sweeps, self.done, self.sure = 1, True, False
        self.s, self.at, self.value, self.residual = 0.5, 0.5, 0.0, math.inf
        usable = min(at_0, at_1, at_half) > 1e-30 and math.isfinite(at_0 + at_1 + at_half + m1 + m2 + m3)
        if not usable:
            return  # -inf among the logits, or rows too far apart for float32
        mean, variance, third = _cumulants(at_half, m1, m2, m3)
        self.log_policy, self.log_target = math.log(at_0), math.log(at_1)
        self.line = self.log_target - self.log_policy
        log_z = math.log(at_half)
        c1, c2, c3 = mean - self.line, variance / 2, third / 6
        lift = (self.log_policy + self.log_target) / 2 - log_z
        c4 = 8 * (2 * lift) - 4 * c2
        c5 = -16 * c1 - 4 * c3
        self.curve = _Curve((log_z - (self.log_policy + self.log_target) / 2, c1, c2, c3, c4, c5))
        self.low, self.high = (0.0, 0.5) if c1 > 0 else (0.5, 1.0)
        t = self.curve.lowest()
        self.s, self.value = 0.5 + t, self.curve.value(t)
        # What the two highest powers contribute bounds, in practice by far, what powers above them would.
        self.residual = abs(self.curve.slope(t)) + abs(4 * c4 * t**3) + abs(0.75 * c5 * t**2)
        self.done = self.sure = self.residual <= allowed_residual(tolerance, max(variance, 0.0))
        if not self.done and not self.low <= self.s <= self.high:
            self.s = (self.low + self.high) / 2

    def visit(self, total: float, m1: float, m2: float) -> None:
        """Take in a sweep at ``s`` and go on from there."""
        if self.done:
            return
        self.sweeps += 1
        at, self.done = self.s, True
        if not (total > 1e-30 and math.isfinite(total + m1 + m2)):
            return
        mean, variance, _ = _cumulants(total, m1, m2, 0.0)
        slope = mean - self.line
        self.low, self.high = (self.low, at) if slope > 0 else (at, self.high)
        if variance <= 0:
            return
        allowed = allowed_residual(self.tolerance, variance)
        step = -slope / variance
        inside = self.low < at + step < self.high
        if not inside and abs(slope) > allowed:
            self.s, self.done = (self.low + self.high) / 2, False
            return
        step = step if inside else 0.0
        bend = abs(self.curve.second(at - 0.499) - self.curve.second(at - 0.501)) / 2e-3
        line = (1 - at) * self.log_policy + at * self.log_target
        self.s = at + step
        self.value = math.log(total) - line + step * (slope + step * variance / 2)
        self.residual = max(bend, variance) * step**2 / 2 if inside else abs(slope)
        self.done = self.sure = self.residual <= allowed

    def found(self) -> Found:
        return Found(self.s, self.value, self.residual, self.sweeps, self.sure)

    def log_sum(self) -> float:
        """log Σ exp of the interpolated logits, less their tops."""
        if not self.sure:
            return 0.0
        return self.value + (1 - self.s) * self.log_policy + self.s * self.log_target


def _cumulants(total: float, m1: float, m2: float, m3: float) -> tuple[float, float, float]:
    """Mean, variance and third cumulant of l from sums of weights times powers of the scaled gap."""
    mean, second, third = m1 / total, m2 / total, m3 / total
    variance = second - mean * mean
    skew = third - 3 * mean * second + 2 * mean**3
    return mean / _HALF, variance / _HALF**2, skew / _HALF**3


class Tile:
    """Buffers for some rows, reused from tile to tile."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        self.buffers = torch.empty(5, rows, vocabulary)

    def solve(self, policy: Tensor, target: Tensor, out: Tensor, tolerance: float) -> list[Found]:
        """Fill ``out`` with log q of these float32 rows, ``[r, V]``, and say where each q lies."""
        a, b, gap, w, other = self.buffers[:, : len(policy)]
        top_a, top_b = policy.amax(-1, keepdim=True), target.amax(-1, keepdim=True)
        torch.add(top_a * -_HALF, policy, alpha=_HALF, out=a)
        torch.add(top_b * -_HALF, target, alpha=_HALF, out=b)
        torch.sub(b, a, out=gap)
        torch.exp2(a, out=w)
        torch.exp2(b, out=other)
        middle = torch.mul(w, other, out=out)
        ends = [w.square_().sum(-1), other.square_().sum(-1)]
        sums = [*ends, middle.sum(-1), *(middle.mul_(gap).sum(-1) for _ in range(3))]
        points = [_Point(tolerance, *row) for row in torch.stack(sums, -1).tolist()]
        for _ in range(_SWEEPS):
            if all(point.done for point in points):
                break
            torch.lerp(a, b, _column(point.s for point in points), out=w)
            w.exp2_().square_()
            sums = [w.sum(-1), *(w.mul_(gap).sum(-1) for _ in range(2))]
            for point, row in zip(points, torch.stack(sums, -1).tolist(), strict=True):
                point.visit(*row)
        s = _column(point.s for point in points)
        torch.lerp(policy, target, s, out=out)
        out.sub_(_column(point.log_sum() for point in points) + torch.lerp(top_a, top_b, s))
        return [point.found() for point in points]


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32).unsqueeze(-1)

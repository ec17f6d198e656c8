"""The Chernoff point of long rows, computed while a few rows of logits are in cache.

With A = exp(policy/2) and B = exp(target/2) the sums of A², A·B and B² are the partition functions at s = 0,
1/2 and 1 for two exponentials a token. These and four moments of l at 1/2 fix a polynomial of degree 6 for
log Z, whose minimum is the point to within rounding for rows that are roughly alike. Rows that are not take
further sweeps, each at the point that the last one predicts.
"""

import math
import threading
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: numbers in one tile for each thread: a few such buffers stay in the second and third level of cache
TILE = 250_000
#: 2 to the power of this times x is exp(x / 2); exp2 is several times faster than exp on CPUs
_HALF = math.log2(math.e) / 2
_SWEEPS = 12
_EPS = torch.finfo(torch.float32).eps
_reused = threading.local()


class Ends(NamedTuple):
    """log Σ exp of both rows of logits less their largest, nats: what turns sums over them into log Z."""

    policy: float
    target: float

    def at(self, s: float) -> float:
        return (1 - s) * self.policy + s * self.target


class Point:
    """One row's search for the s at which E_q[l] is 0.

    Attributes:
        s: 1 - alpha, where the search stands.
        log_z: log Σ policy^(1-s)·target^s there, nats.
        residual: estimate of |E_q[l]| there, nats.
        sweeps: how many led there.
        sure: True where the residual is small enough.
    """

    def __init__(self, tolerance: float, log_z: float, cumulants: list[float]) -> None:
        """From log Z and four cumulants of l at 1/2."""
        self.tolerance, self.sweeps, self.sure = tolerance, 1, False
        self.s, self.log_z, self.residual = 0.5, 0.0, math.inf
        self.done = not _usable(log_z, cumulants)
        if self.done:
            return
        c0, (c1, variance, third, fourth) = log_z, cumulants
        c2, c3, c4 = variance / 2, third / 6, fourth / 24
        c5, c6 = -16 * c1 - 4 * c3, -64 * c0 - 16 * c2 - 4 * c4  # log Z is 0 at t = -1/2 and at t = 1/2
        t = slope = 0.0
        for _ in range(8):
            slope = c1 + t * (2 * c2 + t * (3 * c3 + t * (4 * c4 + t * (5 * c5 + t * 6 * c6))))
            bend = 2 * c2 + t * (6 * c3 + t * (12 * c4 + t * (20 * c5 + t * 30 * c6)))
            if abs(slope) <= 1e-3 * tolerance or bend <= 0:
                break
            t = min(max(t - slope / bend, -0.49), 0.49)
        self.s = 0.5 + t
        self.log_z = c0 + t * (c1 + t * (c2 + t * (c3 + t * (c4 + t * (c5 + t * c6)))))
        # The next power adds 5/4·c7·t⁴ to the slope. That |c7| is at most what stands here is a guess: among
        # 6000 made pairs of 2 to 300 tokens 5 were called sure whose residual was up to 2.7 times too large.
        self.residual = abs(slope) + 2 * (abs(c5) + abs(c6)) * t**4
        self.done = self.sure = self.residual <= self._allowed(variance)
        self.low, self.high = (0.0, 0.5) if c1 > 0 else (0.5, 1.0)
        if not self.done and not self.low < self.s < self.high:
            self.s = (self.low + self.high) / 2

    def visit(self, log_z: float, cumulants: list[float]) -> None:
        """Take in log Z and three cumulants at ``s``, and go on from there."""
        if self.done:
            return
        self.sweeps, at = self.sweeps + 1, self.s
        self.done = not _usable(log_z, cumulants)
        if self.done:
            return
        slope, variance, third = cumulants
        self.low, self.high = (self.low, at) if slope > 0 else (at, self.high)
        bend = variance - slope * third / (2 * variance) if variance > 0 else 0.0
        step = -slope / bend if bend > 0 else math.inf  # Halley's
        inside, allowed = self.low < at + step < self.high, self._allowed(variance)
        if not inside and abs(slope) > allowed:
            self.s = (self.low + self.high) / 2
            return
        step = step if inside else 0.0
        self.s = at + step
        self.log_z = log_z + step * (slope + step * (variance / 2 + step * third / 6))
        # what Newton's step would leave; Halley's leaves less
        self.residual = max(abs(third), variance) * step**2 / 2 if inside else abs(slope)
        self.done = self.sure = self.residual <= allowed

    def _allowed(self, variance: float) -> float:
        """Nats: the tolerance in units of l's spread, and what the last bit of a float32 alpha amounts to."""
        variance = max(variance, 0.0)
        return self.tolerance * max(1.0, math.sqrt(variance)) + _EPS * variance


def chernoff_points(policy: Tensor, target: Tensor, out: Tensor, tolerance: float) -> list[Point]:
    """Fill ``out`` with log q of float32 rows, ``[R, V]``; it means nothing for points that are not sure."""
    rows = torch.get_num_threads() * max(1, TILE // policy.shape[1])
    buffers = _buffers(min(rows, len(policy)), policy.shape[1])
    points: list[Point] = []
    for p, t, q in zip(policy.split(rows), target.split(rows), out.split(rows), strict=True):
        points += _tile(p, t, q, buffers[:, : len(p)], tolerance)
    return points


def _tile(policy: Tensor, target: Tensor, out: Tensor, buffers: Tensor, tolerance: float) -> list[Point]:
    a, b, gap, w = buffers
    tops = torch.stack([policy.amax(-1), target.amax(-1)])
    down = (tops * -_HALF).unsqueeze(-1)
    torch.add(down[0], policy, alpha=_HALF, out=a)
    torch.add(down[1], target, alpha=_HALF, out=b)
    torch.sub(b, a, out=gap)
    torch.mul(a.exp2_(), b.exp2_(), out=w)
    sums = [*tops, *(x.square_().sum(-1) for x in (a, b)), *_sums(w, gap, moments=4)]
    points, levels, ends = [], [], []
    for top_policy, top_target, at_0, at_1, *row in torch.stack(sums, -1).tolist():
        ends.append(Ends(math.log(at_0), math.log(at_1)))
        levels.append(Ends(ends[-1].policy + top_policy, ends[-1].target + top_target))
        points.append(Point(tolerance, *_cumulants(row, ends[-1], 0.5)))
    left = [i for i, point in enumerate(points) if not point.done]
    if left:
        rows, some = torch.tensor(left), slice(len(left))
        for x, y, low in ((policy, a[some], down[0]), (target, b[some], down[1])):
            torch.add(low[rows], torch.index_select(x, 0, rows, out=w[some]), alpha=_HALF, out=y)
        torch.sub(b[some], a[some], out=gap[some])
        _search([points[i] for i in left], [ends[i] for i in left], *buffers[:, some])
    torch.lerp(policy, target, _column(point.s for point in points), out=out)
    out.sub_(_column(p.log_z + level.at(p.s) for p, level in zip(points, levels, strict=True)))
    return points


def _search(points: list[Point], ends: list[Ends], a: Tensor, b: Tensor, gap: Tensor, w: Tensor) -> None:
    """Sweep over some rows until all of them are done."""
    for _ in range(_SWEEPS):
        torch.lerp(a, b, _column(point.s for point in points), out=w)
        w.exp2_().square_()
        sums = torch.stack(_sums(w, gap, moments=3), -1).tolist()
        for point, end, row in zip(points, ends, sums, strict=True):
            point.visit(*_cumulants(row, end, point.s))
        if all(point.done for point in points):
            return


def _sums(w: Tensor, gap: Tensor, moments: int) -> list[Tensor]:
    """Σ w over each row, and the same with powers of the gap; ``w`` is overwritten."""
    return [w.sum(-1), *(w.mul_(gap).sum(-1) for _ in range(moments))]


def _usable(log_z: float, cumulants: Iterable[float]) -> bool:
    """False for -inf among the logits, and for rows too far apart for float32."""
    return math.isfinite(log_z) and all(map(math.isfinite, cumulants))


def _cumulants(sums: list[float], ends: Ends, s: float) -> tuple[float, list[float]]:
    """log Z, and mean and further cumulants of l, from sums of weights times powers of the scaled gap."""
    total, *moments = sums
    if not total > 1e-30:
        return -math.inf, []
    first, second, third, *fourth = (moment / total for moment in moments)
    variance = second - first**2
    cumulants = [first, variance, third - 3 * first * second + 2 * first**3]
    if fourth:
        about_mean = fourth[0] - 4 * first * third + 6 * first**2 * second - 3 * first**4
        cumulants.append(about_mean - 3 * variance**2)
    cumulants = [value / _HALF**k for k, value in enumerate(cumulants, 1)]
    cumulants[0] -= ends.target - ends.policy
    return math.log(total) - ends.at(s), cumulants


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32).unsqueeze(-1)


def _buffers(rows: int, width: int) -> Tensor:
    """The last buffers of this thread if their shape fits: fresh memory costs more than a sweep over it."""
    buffers: Tensor | None = getattr(_reused, "buffers", None)
    if buffers is None or buffers.shape[1:] != (rows, width):
        buffers = _reused.buffers = torch.empty(4, rows, width)
    return buffers

"""The law R = -a exp(H) + b on the steps of a run: its fit, how far to trust it, and where entropy is going.

Everything here is a function of rows as they stand in metrics.jsonl, so a run that is resumed says what it
would have said without the stop, and a report of the same rows says it too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from klent.kit.tables import Row, finite

POOR = 0.5
"""R^2 below which no ceiling is read from a fit."""

POINTS = 6
"""Steps below which nothing is forecast."""

FLOOR = 0.05
"""Entropy, nats per token, at which a policy has as good as one choice left."""

REACH = 3.0
"""A forecast goes at most this many times as far as the steps that it rests on."""

INTERVENED = ("thermostat/",)
"""Metrics of a controller that holds entropy: with one at work reward and entropy no longer trade freely."""


@dataclass(frozen=True)
class Fit:
    """The fit of a run's steps.

    Attributes:
        a, b: of ``R = -a exp(H) + b``, in units of reward.
        covariance: of the estimates of a and b, 2 x 2, as if steps were independent.
        ceiling: ``b - a``, the reward predicted at H = 0.
        error: standard error of the ceiling.
        r2: share of the reward's variance over the steps that the fit explains.
        n: number of steps.
        lowest: the lowest entropy among them, nats: below it the fit extrapolates.
        sigma: standard deviation of a step's reward around the curve.
        echo: correlation of a step's residual with the one before, in [0, 0.8].
        moved: highest less lowest reward among the steps.
    """

    a: float
    b: float
    covariance: tuple[tuple[float, float], tuple[float, float]]
    ceiling: float
    error: float
    r2: float
    n: int
    lowest: float
    sigma: float
    echo: float
    moved: float

    @property
    def poor(self) -> bool:
        """Whether no ceiling should be read from it: little explained, or a slope that may be zero."""
        return self.r2 < POOR or self.a <= 2 * self.slope_error

    @property
    def slope_error(self) -> float:
        """Standard error of a."""
        return math.sqrt(max(0.0, self.covariance[0][0]))

    def at(self, entropy: float) -> tuple[float, float]:
        """Predicted reward at an entropy, and its standard error."""
        rise = -math.exp(entropy)
        (aa, ab), (_, bb) = self.covariance
        return self.a * rise + self.b, math.sqrt(max(0.0, rise * rise * aa + 2 * rise * ab + bb))

    def spread(self, entropy: float) -> float:
        """Half the width of the band that holds the reward of one further step at 95%."""
        return student(self.n - 2) * math.hypot(self.at(entropy)[1] * self._widening, self.sigma)

    @property
    def margin(self) -> float:
        """Half the width of the ceiling's 95% interval.

        Student's quantile times the standard error, widened by ``sqrt((1 + r) / (1 - r))`` for residuals that
        follow one another with correlation r: n such steps know as much as fewer independent ones.
        """
        return student(self.n - 2) * self.error * self._widening

    @property
    def _widening(self) -> float:
        return math.sqrt((1 + self.echo) / (1 - self.echo))


@dataclass(frozen=True)
class Forecast:
    """Where the entropy of a run stands, and where it goes.

    Attributes:
        step: the last step that it rests on.
        spent: share of the initial entropy that is gone; below 0 where entropy rose.
        entropy: mean over the latest steps, nats per token.
        ceiling: predicted reward at zero entropy with the ends of its 95% interval; None where the fit is
            poor, rests on too few steps, or leaves the ceiling less sure than by what the reward has moved.
        r2: of the fit, None without one.
        floor_step: when entropy reaches ``FLOOR`` if it goes on as now; None where it is there already, does
            not surely fall, or would take longer than can be foreseen.
    """

    step: int
    spent: float
    entropy: float
    ceiling: tuple[float, float, float] | None
    r2: float | None
    floor_step: int | None

    def words(self) -> str:
        """One line: what is spent, when it ends, and what it buys."""
        said = [f"{100 * self.spent:.0f}% of the entropy spent, {self.entropy:.2g} nats per token left"]
        if self.floor_step is not None:
            said.append(f"at this rate {FLOOR} nats by step {self.floor_step}")
        if self.ceiling is not None:
            said.append("predicted ceiling {:.2f} ({:.2f} to {:.2f})".format(*self.ceiling))
        return "; ".join(said)


def points(rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    """Step, entropy and reward of every step that has both, where the entropy is one that can be."""
    found = []
    for row in rows:
        entropy, reward = finite(row.get("policy/entropy")), finite(row.get("reward/mean"))
        if entropy is not None and reward is not None and 0 <= entropy <= 50:
            found.append((int(row["step"]), entropy, reward))
    return found


def fit_law(rows: Sequence[Row]) -> Fit | None:
    """The fit over all steps; None with fewer than four, or where entropy did not move."""
    known = points(rows)
    entropies, rewards = [h for _, h, _ in known], [r for _, _, r in known]
    if len(known) < 4 or max(entropies) - min(entropies) < 1e-3:
        return None
    # torch is heavy, and of what reads rows only this needs it
    import torch

    from klent.objectives import fit_reward_entropy

    double = torch.float64
    fitted = fit_reward_entropy(torch.tensor(entropies, dtype=double), torch.tensor(rewards, dtype=double))
    a, b = fitted.a, fitted.b
    (aa, ab), (_, bb) = fitted.covariance.tolist()
    left = [r + a * math.exp(h) - b for h, r in zip(entropies, rewards, strict=True)]
    residual = sum(value * value for value in left)
    middle = sum(rewards) / len(rewards)
    spread = sum((r - middle) ** 2 for r in rewards)
    echo = sum(x * y for x, y in pairwise(left)) / residual if residual > 0 else 0.0
    return Fit(
        a=a,
        b=b,
        covariance=((aa, ab), (ab, bb)),
        ceiling=fitted.ceiling,
        error=math.sqrt(max(0.0, aa - 2 * ab + bb)),
        r2=1 - residual / spread if spread > 0 else 0.0,
        n=len(known),
        lowest=min(entropies),
        sigma=math.sqrt(residual / (len(known) - 2)),
        echo=min(0.8, max(0.0, echo)),
        moved=max(rewards) - min(rewards),
    )


def intervened(rows: Sequence[Row]) -> bool:
    """Whether a controller holds the entropy in these steps."""
    return bool(rows) and any(name.startswith(INTERVENED) for name in rows[-1])


def forecast(rows: Sequence[Row], fit: Fit | None = None) -> Forecast | None:
    """What the rows so far say of the rows to come; None before ``POINTS`` steps with an entropy.

    Args:
        rows: of metrics.jsonl, in order.
        fit: of these rows, where the caller has it already.
    """
    pairs = [(int(r["step"]), h) for r in rows if (h := finite(r.get("policy/entropy"))) is not None]
    pairs = [(step, h) for step, h in pairs if 0 < h <= 50]
    if len(pairs) < POINTS:
        return None
    each = max(1, min(20, len(pairs) // 10))
    start, now = (sum(h for _, h in part) / each for part in (pairs[:each], pairs[-each:]))
    fit = None if intervened(rows) else fit or fit_law(rows)
    ceiling = None
    if fit is not None and not fit.poor and fit.n >= POINTS and fit.margin <= fit.moved:
        ceiling = (fit.ceiling, fit.ceiling - fit.margin, fit.ceiling + fit.margin)
    return Forecast(
        step=pairs[-1][0],
        spent=1 - now / start,
        entropy=now,
        ceiling=ceiling,
        r2=fit.r2 if fit else None,
        floor_step=_floor_step(rows, pairs),
    )


def law_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """``law/...`` of the last of these rows; what cannot be said is left out."""
    known = forecast(rows)
    if known is None:
        return {}
    found = {"law/entropy_spent": known.spent}
    if known.r2 is not None:
        found["law/r2"] = known.r2
    if known.ceiling is not None:
        names = ("law/ceiling", "law/ceiling_low", "law/ceiling_high")
        found |= dict(zip(names, known.ceiling, strict=True))
    if known.floor_step is not None:
        found["law/floor_step"] = known.floor_step
    return found


def _floor_step(rows: Sequence[Row], pairs: Sequence[tuple[int, float]]) -> int | None:
    """When entropy reaches ``FLOOR``, at the mean of two rates: that of late, and that which updates predict.

    Entropy is taken to fall by the same factor at every step. The first rate is the slope of log H over the
    latest third of the steps, from 5 to 20 of them. The second is the change that the covariance theorem
    gives for the latest three updates, scaled by what its sum over the run was off by; it sees a turn before
    the entropy does.
    """
    window = pairs[-max(5, min(20, len(pairs) // 3)) :]
    slope, error, level = _line([step for step, _ in window], [math.log(h) for _, h in window])
    now = math.exp(level)
    if now <= FLOOR or slope >= -2 * error or slope > -1e-6:
        return None
    rates = [slope]
    predicted = [finite(row.get("policy/entropy_delta_predicted")) for row in rows]
    known = [value for value in predicted if value is not None]
    fall = pairs[-1][1] - pairs[0][1]
    total = sum(known[:-1])
    if len(known) >= POINTS and fall * total > 0:
        share = min(2.0, fall / total) * sum(known[-3:]) / sum(h for _, h in pairs[-3:])
        rates.append(math.log1p(max(-0.95, share)))
    rate = sum(rates) / len(rates)
    if rate >= 0:
        return None
    left = math.log(FLOOR / now) / rate
    first, last = pairs[0][0], pairs[-1][0]
    return last + max(1, math.ceil(left)) if left <= REACH * (last - first + 1) else None


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope of a least-squares line, its standard error, and the line's value at the last x."""
    n = len(x)
    middle_x, middle_y = sum(x) / n, sum(y) / n
    width = sum((value - middle_x) ** 2 for value in x)
    slope = sum((u - middle_x) * (v - middle_y) for u, v in zip(x, y, strict=True)) / width
    left = sum((v - middle_y - slope * (u - middle_x)) ** 2 for u, v in zip(x, y, strict=True))
    return slope, math.sqrt(left / max(1, n - 2) / width), middle_y + slope * (x[-1] - middle_x)


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by its expansion around the normal's; within 0.3% from 4 degrees on.

    >>> round(student(4), 2), round(student(30), 3), round(student(10**6), 3)
    (2.77, 2.042, 1.96)
    """
    z, v = 1.959964, max(1, freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3

"""The law R = -a exp(H) + b on the steps of a run: its fit, how far to trust it, and where entropy is going.

Everything here is a function of the rows of metrics.jsonl, so a resumed run reports exactly what it would
have reported without the stop, and so does a report of the same rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from klent.kit.statistics import ends, mean
from klent.kit.student import t_bound
from klent.kit.tables import Row, finite, step_of
from klent.kit.text import fixed, number, share, signed

POOR = 0.5
"""R^2 below which a fit gives no ceiling."""

POINTS = 6
"""Fewest steps for a forecast."""

FLOOR = 0.05
"""Entropy, nats per token, at which a policy has practically one choice left."""

REACH = 3.0
"""A forecast reaches at most this many times as far as the steps it is based on."""

INTERVENED = {
    "thermostat/": "a thermostat held the entropy, so reward was not traded for it freely",
    "mixture/": "the completions are a mixture's, so their reward is not the policy's",
}
"""First part of a metric's name -> why the steps that have it say nothing of reward against entropy."""


@dataclass(frozen=True)
class Fit:
    """The fit of a run's steps.

    Attributes:
        a, b: of ``R = -a exp(H) + b``, in units of reward.
        covariance: of the estimates of a and b, 2 x 2, treating steps as independent.
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
        """Whether it supports no ceiling: it explains little, or its slope may be zero."""
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
        """Half the width of the band that holds the reward of one more step at 95%."""
        return t_bound(0.05, self.n - 2) * math.hypot(self.at(entropy)[1] * self._widening, self.sigma)

    @property
    def margin(self) -> float:
        """Half the width of the ceiling's 95% interval.

        Student's quantile times the standard error, widened by ``sqrt((1 + r) / (1 - r))`` for residuals that
        are correlated from step to step with r: n such steps are worth fewer independent ones.
        """
        return t_bound(0.05, self.n - 2) * self.error * self._widening

    @property
    def _widening(self) -> float:
        return math.sqrt((1 + self.echo) / (1 - self.echo))


@dataclass(frozen=True)
class Forecast:
    """The entropy of a run now, and where it is going.

    Attributes:
        step: the last step it is based on.
        spent: share of the initial entropy that is gone; negative if entropy rose.
        entropy: mean over the latest steps, nats per token.
        ceiling: predicted reward at zero entropy with the ends of its 95% interval; None with too few steps,
            where :func:`no_ceiling` names a reason, or where the reward has refuted it.
        reward: mean over the latest steps; None if there is none.
        r2: of the fit, None without one.
        floor_step: when entropy reaches ``FLOOR`` at the current rate; None if it is already below, is not
            clearly falling, or would take longer than ``REACH`` allows.
    """

    step: int
    spent: float
    entropy: float
    ceiling: tuple[float, float, float] | None
    reward: float | None
    r2: float | None
    floor_step: int | None

    def sentence(self) -> str:
        """One line: what is spent, when entropy reaches the floor, and what reward is still to be expected."""
        parts = [f"{share(self.spent)} of the entropy spent, {number(self.entropy, 2)} nats per token left"]
        if self.floor_step is not None:
            parts.append(f"at this rate {FLOOR} nats by step {self.floor_step}")
        if self.ceiling is not None and (self.reward is None or self.reward < self.ceiling[0]):
            parts.append("predicted ceiling {:.2f} ({:.2f} to {:.2f})".format(*self.ceiling))
        return "; ".join(parts)


def points(rows: Sequence[Row]) -> list[tuple[int, float, float]]:
    """Step, entropy and reward of every step that has both and whose entropy is plausible (0 to 50 nats)."""
    complete = []
    for row in rows:
        entropy, reward = finite(row.get("policy/entropy")), finite(row.get("reward/mean"))
        if entropy is not None and reward is not None and 0 <= entropy <= 50:
            complete.append((step_of(row), entropy, reward))
    return complete


def fit_law(rows: Sequence[Row]) -> Fit | None:
    """The fit over all steps; None with fewer than four, or if entropy did not move."""
    complete = points(rows)
    entropies, rewards = [h for _, h, _ in complete], [r for _, _, r in complete]
    if len(complete) < 4 or max(entropies) - min(entropies) < 1e-3:
        return None
    # torch is slow to import, and nothing else that reads rows needs it
    import torch

    from klent.objectives import fit_reward_entropy

    double = torch.float64
    fitted = fit_reward_entropy(torch.tensor(entropies, dtype=double), torch.tensor(rewards, dtype=double))
    a, b = fitted.a, fitted.b
    (aa, ab), (_, bb) = fitted.covariance.tolist()
    residuals = [r + a * math.exp(h) - b for h, r in zip(entropies, rewards, strict=True)]
    unexplained = sum(value * value for value in residuals)
    middle = mean(rewards)
    spread = sum((r - middle) ** 2 for r in rewards)
    echo = sum(x * y for x, y in pairwise(residuals)) / unexplained if unexplained > 0 else 0.0
    return Fit(
        a=a,
        b=b,
        covariance=((aa, ab), (ab, bb)),
        ceiling=fitted.ceiling,
        error=math.sqrt(max(0.0, aa - 2 * ab + bb)),
        r2=1 - unexplained / spread if spread > 0 else 0.0,
        n=len(complete),
        lowest=min(entropies),
        sigma=math.sqrt(unexplained / (len(complete) - 2)),
        echo=min(0.8, max(0.0, echo)),
        moved=max(rewards) - min(rewards),
    )


def intervened(rows: Sequence[Row]) -> str:
    """Why reward and entropy do not trade freely during these steps; empty if they do."""
    names = rows[-1] if rows else {}
    return next(
        (why for prefix, why in INTERVENED.items() if any(name.startswith(prefix) for name in names)), ""
    )


def latest_reward(rows: Sequence[Row]) -> float | None:
    """Mean reward over the last tenth of the steps that the law is fitted to; None without any."""
    rewards = [reward for _, _, reward in points(rows)]
    return ends(rewards).end if rewards else None


def no_ceiling(rows: Sequence[Row], fit: Fit) -> str:
    """Why the fit of these rows predicts no ceiling; empty if it predicts one."""
    if why := intervened(rows):
        return why
    if fit.a <= 0:
        return f"reward did not rise as entropy fell (a = {signed(fit.a)})"
    if fit.poor:
        return (
            f"the fit is poor (R² = {fixed(fit.r2)}, a = {number(fit.a)} ± {number(2 * fit.slope_error, 2)})"
        )
    if fit.margin > fit.moved:
        return f"the ceiling's margin, {number(fit.margin, 2)}, exceeds what the reward moved, {number(fit.moved, 2)}"
    return ""


def is_refuted(rows: Sequence[Row], fit: Fit) -> bool:
    """Whether the latest reward lies above the whole interval of the ceiling."""
    last = latest_reward(rows)
    return last is not None and last > fit.ceiling + fit.margin


def is_believed(rows: Sequence[Row], fit: Fit) -> bool:
    """Whether the ceiling may be shown as a number of its own."""
    return not no_ceiling(rows, fit) and not is_refuted(rows, fit)


def forecast(rows: Sequence[Row], fit: Fit | None = None) -> Forecast | None:
    """What the rows so far predict; None before ``POINTS`` steps with an entropy.

    Args:
        rows: of metrics.jsonl, in order.
        fit: of these rows, if the caller already has it.
    """
    pairs = [(step_of(r), h) for r in rows if (h := finite(r.get("policy/entropy"))) is not None]
    pairs = [(step, h) for step, h in pairs if 0 < h <= 50]
    if len(pairs) < POINTS:
        return None
    start, now, _ = ends([h for _, h in pairs])
    fit = None if intervened(rows) else fit or fit_law(rows)
    ceiling = None
    if fit is not None and fit.n >= POINTS and is_believed(rows, fit):
        ceiling = (fit.ceiling, fit.ceiling - fit.margin, fit.ceiling + fit.margin)
    return Forecast(
        step=pairs[-1][0],
        spent=1 - now / start,
        entropy=now,
        ceiling=ceiling,
        reward=latest_reward(rows),
        r2=fit.r2 if fit else None,
        floor_step=_floor_step(rows, pairs),
    )


def law_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """``law/...`` of the last of these rows; what cannot be determined is left out."""
    ahead = forecast(rows)
    if ahead is None:
        return {}
    metrics = {"law/entropy_spent": ahead.spent}
    if ahead.r2 is not None:
        metrics["law/r2"] = ahead.r2
    if ahead.ceiling is not None:
        names = ("law/ceiling", "law/ceiling_low", "law/ceiling_high")
        metrics |= dict(zip(names, ahead.ceiling, strict=True))
    if ahead.floor_step is not None:
        metrics["law/floor_step"] = ahead.floor_step
    return metrics


def _floor_step(rows: Sequence[Row], pairs: Sequence[tuple[int, float]]) -> int | None:
    """When entropy reaches ``FLOOR``, at the mean of two rates: the recent one, and the predicted one.

    Entropy is assumed to fall by the same factor at every step. The first rate is the slope of log H over the
    latest third of the steps, from 5 to 20 of them. The second is the change that the covariance theorem
    predicts for the latest three updates, scaled by the ratio of measured to predicted change over the run;
    it shows a turn before the entropy does.
    """
    window = pairs[-max(5, min(20, len(pairs) // 3)) :]
    slope, error, level = _line([step for step, _ in window], [math.log(h) for _, h in window])
    now = math.exp(level)
    if now <= FLOOR or slope >= -2 * error or slope > -1e-6:
        return None
    rates = [slope]
    predicted = [finite(row.get("policy/entropy_delta_predicted")) for row in rows]
    changes = [value for value in predicted if value is not None]
    fall = pairs[-1][1] - pairs[0][1]
    total = sum(changes[:-1])
    if len(changes) >= POINTS and fall * total > 0:
        factor = min(2.0, fall / total) * sum(changes[-3:]) / sum(h for _, h in pairs[-3:])
        rates.append(math.log1p(max(-0.95, factor)))
    rate = sum(rates) / len(rates)
    if rate >= 0:
        return None
    remaining = math.log(FLOOR / now) / rate
    first, last = pairs[0][0], pairs[-1][0]
    return last + max(1, math.ceil(remaining)) if remaining <= REACH * (last - first + 1) else None


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope of a least-squares line, its standard error, and the line's value at the last x."""
    n = len(x)
    middle_x, middle_y = sum(x) / n, sum(y) / n
    width = sum((value - middle_x) ** 2 for value in x)
    slope = sum((u - middle_x) * (v - middle_y) for u, v in zip(x, y, strict=True)) / width
    unexplained = sum((v - middle_y - slope * (u - middle_x)) ** 2 for u, v in zip(x, y, strict=True))
    return slope, math.sqrt(unexplained / max(1, n - 2) / width), middle_y + slope * (x[-1] - middle_x)

"""Draws reward against entropy, with the fit of R = -a exp(H) + b and its ceiling."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from klent.kit.svg import FONT, Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.text import fixed, number, plural
from klent.measure.law import Fit, fit_law, is_believed, points
from klent.report.read import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DENSE = 60
"""With more points than this, points are small and faint."""

MARGIN = 50
"""Pixels left of the axis."""


def fit_run(run: RunData) -> Fit | None:
    """The fit over all steps; None with fewer than four, or if entropy did not move."""
    return fit_law(run.rows)


def reward_entropy(run: RunData, fit: Fit | None) -> Figure | None:
    """Every step as a point, early ones hollow and late ones solid, with the fit extended to H = 0."""
    steps = points(run.rows)
    if len(steps) < 2:
        return None
    figure, (panel,) = canvas(width=560, height=330, left=MARGIN)
    highest = max(h for _, h, _ in steps)
    role, mark = ("ink", "ring") if len(steps) <= DENSE else ("tone4", "dot")
    keys = [Key("early step", role, mark), Key("late step", "ink", "dot")]
    believed = fit is not None and is_believed(run.rows, fit)
    if fit is not None:
        _curve(panel, fit, highest, believed)
        keys += [
            Key("fit ± 2 standard errors", "reward"),
            Key("95% of future steps", "reward", "fill faint"),
        ]
        keys += [Key("extrapolated", "reward", "dash")]
    _points(panel, steps)
    rewards = [r for _, _, r in steps] + ([fit.ceiling] if fit is not None and believed else [])
    low, high = min([*rewards, 0.0]), max(rewards)
    room = (high - low) or 1.0
    panel.set_ylim(low - (0.1 if low < 0 else 0.03) * room, high + 0.16 * room)
    panel.set_xlim(0, highest * 1.06 or 1)
    unit(panel, "mean reward of a step", left=MARGIN)
    horizontal(panel, "nats", left=MARGIN)
    caption = (
        f"n = {plural(len(steps), 'step')}. Horizontal axis: policy entropy, nats per token; a run that "
        "loses entropy moves from right to left."
    )
    return Figure("reward-entropy", "Reward against entropy", render(figure, "reward-entropy"), keys, caption)


def _curve(panel: "Axes", fit: Fit, highest: float, believed: bool) -> None:
    """The fit with its band, dashed where it extrapolates, and its value at H = 0 if that is believed."""
    grid = sorted([*(highest * 1.04 * i / 120 for i in range(121)), fit.lowest])
    curve = [fit.at(h) for h in grid]
    low, high = ([r + sign * error for r, error in curve] for sign in (-2, 2))
    panel.fill_between(grid, low, high, color=colour("reward"), alpha=0.14, linewidth=0, gid="fit-band")
    low, high = (
        [r + sign * fit.spread(h) for h, (r, _) in zip(grid, curve, strict=True)] for sign in (-1, 1)
    )
    panel.fill_between(grid, low, high, color=colour("reward"), alpha=0.06, linewidth=0, gid="step-band")
    predicted = [(h, r) for h, (r, _) in zip(grid, curve, strict=True)]
    seen = [(h, r) for h, r in predicted if h >= fit.lowest]
    beyond = [(h, r) for h, r in predicted if h <= fit.lowest]
    for gid, part, dashes in (("fit-seen", seen, "-"), ("fit-beyond", beyond, (0, (2, 2)))):
        x, y = zip(*part, strict=True)
        panel.plot(x, y, color=colour("reward"), linewidth=1.6, linestyle=dashes, gid=gid)
    if not believed:
        return
    panel.plot([0], [fit.ceiling], "D", color=colour("reward"), markersize=6, clip_on=False, gid="ceiling")
    panel.annotate(
        f"ceiling {fixed(fit.ceiling)} ± {number(fit.margin, 2)}",
        (0, fit.ceiling),
        (10, 8),
        textcoords="offset pixels",
        color=colour("ink"),
        fontsize=FONT,
    )


def _points(panel: "Axes", steps: Sequence[tuple[int, float, float]]) -> None:
    """One point per step, from hollow to solid over the run; if there are very many, from faint to solid."""
    if len(steps) > DENSE:
        for tenth in range(10):
            part = steps[len(steps) * tenth // 10 : len(steps) * (tenth + 1) // 10 : -(-len(steps) // 600)]
            x, y = [h for _, h, _ in part], [r for _, _, r in part]
            alpha = 0.12 + 0.06 * tenth
            panel.plot(
                x,
                y,
                "o",
                color=colour("ink"),
                markersize=4,
                markeredgewidth=0,
                alpha=alpha,
                gid=f"tenth-{tenth}",
            )
        return
    last = max(1, len(steps) - 1)
    for index, (step, h, r) in enumerate(steps):
        for gid, ink, alpha in ((f"under-{step}", "page", 1.0), (f"fill-{step}", "ink", index / last)):
            panel.plot(
                [h], [r], "o", color=colour(ink), markersize=6.5, markeredgewidth=0, alpha=alpha, gid=gid
            )
        panel.plot(
            [h],
            [r],
            "o",
            markersize=6.5,
            gid=f"step-{step}",
            markerfacecolor="none",
            markeredgecolor=colour("ink"),
            markeredgewidth=0.9,
        )

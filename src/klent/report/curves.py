"""Draws metrics over the steps: panels of lines, of which most figures consist."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klent.kit.svg import Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.tables import finite
from klent.kit.text import number, plural
from klent.report.read import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_ABOVE = 120
"""With more steps than this, a line is drawn faintly and its running mean boldly."""

DRAWN_AT_MOST = 400
"""With more steps than this, neighbours are drawn together, to bound the size of the page."""


@dataclass(frozen=True)
class Line:
    """One metric in a panel.

    Attributes:
        metric: its name in the rows.
        label: what the legend calls it.
        role: its colour.
        mark: ``line``, ``dash`` or ``fill``.
    """

    metric: str
    label: str
    role: str
    mark: str = "line"


@dataclass(frozen=True)
class Panel:
    """Lines that share a unit.

    Attributes:
        unit: written above the axis.
        lines: the metrics, back to front.
        ratio: the panel's share of the figure's height.
        full: the upper bound of the quantity, which is the top of the axis; None if it is unbounded.
    """

    unit: str
    lines: tuple[Line, ...]
    ratio: float = 1.0
    full: float | None = None


def curves(run: RunData, name: str, title: str, *panels: Panel, note: str = "") -> Figure | None:
    """A figure of stacked panels; a panel without values is left out, and None if all of them are."""
    measured = [panel for panel in panels if any(run.has(line.metric) for line in panel.lines)]
    if not measured:
        return None
    steps = run.steps
    shown_at = [part[-1] for part in parts(len(steps))]
    figure, axes = canvas([panel.ratio for panel in measured])
    keys: list[Key] = []
    for axis, panel in zip(axes, measured, strict=True):
        drawn: list[float] = []
        for line in panel.lines:
            values = column(run, line.metric)
            if not all(map(math.isnan, values)):
                draw(axis, steps, values, line)
                shown = [number(values[index]) for index in shown_at]
                keys.append(Key(line.label, line.role, line.mark, line.metric, shown))
                drawn += values
        axis.set_ylim(*limits(drawn, panel.full))
        if min(axis.get_ylim()) < 0:
            axis.axhline(0, color=colour("muted"), linewidth=0.7)
        unit(axis, panel.unit)
        step_axis(axis, steps)
    horizontal(axes[-1], "step")
    caption = f"n = {sizes(run)}." + (f" {note}" if note else "")
    if len(steps) > SMOOTH_ABOVE:
        caption += f" Faint: each step; bold: mean of {_window(len(steps))} steps."
    drawn_steps = [steps[index] for index in shown_at]
    x = pixels(axes[0], drawn_steps)
    return Figure(name, title, render(figure, name), keys, caption, drawn_steps, x)


def column(run: RunData, metric: str) -> list[float]:
    """A metric's value in every row, NaN where it is missing, so that a line breaks at a gap."""
    return [math.nan if value is None else value for value in run.table.column(metric)]


def draw(axis: "Axes", steps: Sequence[int], values: Sequence[float], line: Line) -> None:
    """One line, dashed line or filled area; short runs also show their points."""
    ink, gid = colour(line.role), line.metric.replace("/", "-")
    groups = parts(len(steps))
    x, y = [steps[part[-1]] for part in groups], [values[part[-1]] for part in groups]
    if len(steps) > SMOOTH_ABOVE:
        y = smooth(values, _window(len(steps)), [part[-1] for part in groups])
        numbers = [[values[i] for i in part if not math.isnan(values[i])] for part in groups]
        low, high = ([pick(part) if part else math.nan for part in numbers] for pick in (min, max))
        if len(groups) < len(steps):
            axis.fill_between(x, low, high, color=ink, alpha=0.2, linewidth=0, gid=f"{gid}-raw")
        else:
            axis.plot(x, low, color=ink, alpha=0.25, linewidth=0.8, gid=f"{gid}-raw")
    if line.mark == "fill":
        axis.fill_between(x, y, 0, color=ink, alpha=0.16, linewidth=0)
    dots = "" if len(steps) > 40 else "o"
    axis.plot(
        x,
        y,
        color=ink,
        linewidth=1.2 if line.mark == "fill" else 1.8,
        linestyle=(0, (3, 2)) if line.mark == "dash" else "-",
        marker=dots,
        markersize=2.2 if line.mark == "fill" else 3.6,
        gid=gid,
        clip_on=False,  # half a line's width lies outside where it runs along the end of its axis
    )


def parts(count: int) -> list[range]:
    """Indices 0 to count - 1 as at most ``DRAWN_AT_MOST`` groups of neighbours, of one index if possible."""
    size = max(1, -(-count // DRAWN_AT_MOST))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def limits(values: Sequence[float], full: float | None = None) -> tuple[float, float]:
    """Ends of an axis: from 0 if nothing is negative, to ``full`` if the quantity is bounded by it.

    >>> limits([0.2, 0.5], 1.0), limits([0.0, 0.0]), limits([-1.0, 1.0])
    ((0.0, 1.0), (0.0, 1.0), (-1.2, 1.2))
    """
    numbers = [value for value in values if not math.isnan(value)]
    low, high = min([*numbers, 0.0]), max([*numbers, 0.0])
    if full is not None and low >= 0 and high <= full:
        return 0.0, full
    room = 0.1 * (high - low) or 1.0
    return (low - room if low < 0 else 0.0), high + (room if high > 0 or low == high else 0.0)


def smooth(values: Sequence[float], window: int, at: Sequence[int] | None = None) -> list[float]:
    """Mean of the ``window`` values up to each index of ``at`` (None = all), NaN left out; NaN if all of them are."""
    numbers = [value for value in values if not math.isnan(value)]
    counts = [0, *itertools.accumulate(not math.isnan(value) for value in values)]
    means = []
    for index in range(len(values)) if at is None else at:
        recent = numbers[counts[max(0, index + 1 - window)] : counts[index + 1]]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means


def step_axis(axis: "Axes", steps: Sequence[int]) -> None:
    """Whole-number steps, with room for the first and last point."""
    room = max(0.5, 0.02 * (steps[-1] - steps[0]))
    axis.set_xlim(steps[0] - room, steps[-1] + room)
    marks = step_marks(steps[0], steps[-1])
    axis.set_xticks(marks, [f"{mark:,}" for mark in marks])


def step_marks(first: int, last: int) -> list[int]:
    """The first step and then round ones; every one or every other step in a short run.

    >>> step_marks(1, 15), step_marks(1, 7), step_marks(1, 1), step_marks(1, 2400)
    ([1, 5, 10, 15], [1, 3, 5, 7], [1], [1, 500, 1000, 1500, 2000])
    """
    rough = max(1.0, (last - first) / 5)
    scale = 10 ** math.floor(math.log10(rough))
    every = next(int(scale * size) for size in (1, 2, 5, 10) if scale * size >= rough)
    if every <= 2:
        return list(range(first, last + 1, every))
    return [first, *(mark for mark in range(0, last + 1, every) if mark > first + 0.4 * every)]


def pixels(axis: "Axes", steps: Sequence[int]) -> list[float]:
    """Positions of steps on the horizontal axis, in pixels of the view box."""
    return [round(float(axis.transData.transform((step, 0))[0]), 1) for step in steps]


def sizes(run: RunData) -> str:
    """Number of steps, and completions per step, as text.

    >>> from pathlib import Path
    >>> sizes(RunData(Path(), config={"prompts_per_step": 8, "group_size": 4}, rows=[{"step": 1}]))
    '1 step of 8 × 4 completions'
    """
    prompts, group = (finite(run.config.get(key)) for key in ("prompts_per_step", "group_size"))
    steps = counted(run)
    return f"{steps} of {prompts:.0f} × {group:.0f} completions" if prompts and group else steps


def counted(run: RunData) -> str:
    """How many steps a run's rows are of; another trainer may log one of several.

    >>> from pathlib import Path
    >>> counted(RunData(Path(), rows=[{"step": 10}, {"step": 20}]))
    '2 steps of 20 logged'
    >>> counted(RunData(Path(), rows=[{"step": 1}, {"step": 2}]))
    '2 steps'
    """
    rows, last = len(run.rows), run.steps[-1] if run.rows else 0
    return f"{plural(rows, 'step')} of {last:,} logged" if rows < last else plural(rows, "step")


def _window(steps: int) -> int:
    return max(5, steps // 40)

"""Drawings of a comparison: curves of each arm beside the first, pass@k, and differences with intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from klent.kit.svg import BOTTOM, TOP, canvas, colour, horizontal, render, unit
from klent.kit.text import fixed
from klent.report.curves import limits, smooth, step_axis
from klent.studies.compare.results import Results, RunResult, passes
from klent.studies.compare.statistics import Contrast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL_WIDTH, SMALL_HEIGHT = 300, 168
WIDE, ROW, NAMES = 640, 34, 118
TITLES = {
    "reward/mean": ("Reward", "reward of a step's completions"),
    "policy/entropy": ("Entropy", "nats per token, while sampling"),
    "heldout": ("Held-out pass@1", "share of completions"),
    "kl/reference": ("KL divergence from the reference", "nats per token"),
}


@dataclass(frozen=True)
class Small:
    """One arm's drawing of a family: its name, the SVG, and the number shown beside the name."""

    arm: str
    svg: str
    value: str


@dataclass(frozen=True)
class Family:
    """Drawings of one quantity, one per arm, with the same axes."""

    name: str
    title: str
    caption: str
    members: list[Small]


@dataclass(frozen=True)
class Series:
    """An arm's seeds combined: the mean, the lowest and the highest at each x."""

    x: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def series(seeds: Sequence[Mapping[int, float]], window: int = 1) -> Series | None:
    """Mean and range over seeds at the steps that all of them have; each seed is smoothed first.

    >>> series([{1: 0.0, 2: 1.0}, {1: 1.0, 2: 3.0}])
    Series(x=[1, 2], mean=[0.5, 2.0], low=[0.0, 1.0], high=[1.0, 3.0])
    """
    steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
    if not steps:
        return None
    table = np.array([smooth([seed[step] for step in steps], window) for seed in seeds])
    return Series(steps, table.mean(0).tolist(), table.min(0).tolist(), table.max(0).tolist())


def curve_families(results: Results) -> list[Family]:
    """Every quantity over the steps: each arm in colour, the first arm in grey behind it."""
    families = []
    graded = (
        {"heldout": ("Held-out mean reward", "mean over completions")} if results.kind == "reward" else {}
    )
    for metric, (title, label) in (TITLES | graded).items():
        window = 1 if metric == "heldout" else _window(results)
        of_arm = {
            arm: series([run.curves[metric] for run in results.of(arm) if run.curves[metric]], window)
            for arm in results.arms
        }
        arms = {arm: curve for arm, curve in of_arm.items() if curve is not None}
        if arms:
            role = "entropy" if metric == "policy/entropy" else "reward"
            name = metric.replace("/", "-")
            caption = _seeds_note(results) + (f" Running mean of {window} steps." if window > 1 else "")
            members = _members(
                arms, name, label, role, full=1.0 if metric == "heldout" and not graded else None
            )
            families.append(Family(name, title, caption, members))
    return families


def pass_family(results: Results) -> Family | None:
    """pass@k against k, after training, with the base model's curve: how much diversity is left."""
    ks = list(range(1, results.samples + 1))
    if results.samples < 2 or not results.runs or results.kind == "reward":
        return None

    def curve(runs: Sequence[RunResult], *, before: bool = False) -> Series:
        tables = [run.before if before else run.after for run in runs]
        combined = series([{k: float(passes(t, k).mean()) for k in ks if k <= t.shape[1]} for t in tables])
        assert combined is not None
        return combined

    arms = {arm: curve(results.of(arm)) for arm in results.arms}
    base = curve(results.of(results.arms[0]), before=True)
    members = _members(arms, "pass", "share of problems", "reward", full=1.0, base=base, axis="k")
    caption = _seeds_note(results) + " Dashed: the base model."
    return Family("pass", "pass@k after training", caption, members)


def _members(
    arms: Mapping[str, Series],
    name: str,
    label: str,
    role: str,
    *,
    full: float | None,
    base: Series | None = None,
    axis: str = "step",
) -> list[Small]:
    first, *others = arms
    values = [value for curve in arms.values() for value in (*curve.low, *curve.high)]
    bounds = limits(values + (base.mean if base else []), full)
    members: list[Small] = []
    for arm in others or [first]:
        figure, (panel,) = canvas(width=SMALL_WIDTH, height=SMALL_HEIGHT)
        if base is not None:
            panel.plot(
                base.x, base.mean, color=colour("ink"), linewidth=1.1, linestyle=(0, (3, 2)), clip_on=False
            )
        for which, tone in ((first, "muted"), (arm, role)) if arm != first else ((first, role),):
            _band(panel, arms[which], tone)
        panel.set_ylim(*bounds)
        unit(panel, label)
        step_axis(panel, arms[first].x)
        horizontal(panel, axis)
        members.append(Small(arm, render(figure, f"{name}-{len(members)}"), fixed(arms[arm].mean[-1])))
    return members


def _band(panel: "Axes", curve: Series, role: str) -> None:
    """The mean as a line within the range of its seeds."""
    panel.fill_between(curve.x, curve.low, curve.high, color=colour(role), alpha=0.18, linewidth=0)
    panel.plot(curve.x, curve.mean, color=colour(role), linewidth=1.8, clip_on=False)


def forest(contrasts: Sequence[Contrast], first: str, measure: str) -> str:
    """Differences to the first arm; thick interval: these runs alone, thin: the method with other seeds."""
    figure, (panel,) = canvas(width=WIDE, height=TOP + BOTTOM + ROW * len(contrasts), left=NAMES)
    ends = []
    for row, item in enumerate(contrasts):
        role = {"better": "reward", "worse": "down"}.get(item.verdict, "muted")
        for low, high, width in ((item.low, item.high, 1.3), (item.runs_low, item.runs_high, 5.0)):
            if math.isfinite(low):
                panel.plot([low, high], [row, row], color=colour(role), linewidth=width, alpha=0.7)
                ends += [low, high]
        panel.plot([item.difference], [row], "o", color=colour(role), markersize=7)
    panel.axvline(0, color=colour("muted"), linewidth=0.9)
    far = max([0.02, *(abs(end) for end in ends)]) * 1.06
    panel.set_xlim(-far, far)
    panel.set_yticks(range(len(contrasts)), [_short(item.arm) for item in contrasts])
    panel.set_ylim(len(contrasts) - 0.5, -0.5)
    panel.grid(visible=False, axis="y")
    panel.grid(axis="x", color=colour("rule"), linewidth=0.8)
    unit(panel, f"{measure}, minus that of {_short(first)}", left=NAMES)
    return render(figure, forest_name(measure))


def forest_name(measure: str) -> str:
    """The id of a measure's drawing."""
    return f"forest-{measure.replace('@', '-')}"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _window(results: Results) -> int:
    """Steps averaged in a drawing: a twelfth of the run, or the noise of single steps would hide the arms."""
    longest = max((max(run.curves["reward/mean"], default=1) for run in results.runs), default=1)
    return max(1, round(longest / 12))


def _seeds_note(results: Results) -> str:
    count = max(len(results.of(arm)) for arm in results.arms)
    if count == 1:
        return "One seed."
    return f"Line: mean of {count} seeds; band: from the lowest seed to the highest."

"""One figure per metric with a line for each run, on the steps of all."""

import math
from collections.abc import Mapping, Sequence

from klent.kit.svg import Figure, Key, canvas, horizontal, render, unit
from klent.kit.text import number
from klent.measure.score import LABELS, Kind, score_of
from klent.report.curves import SMOOTH_ABOVE, Line, draw, limits, parts, pixels, step_axis
from klent.report.glossary import describe
from klent.report.read import RunData, step_of
from klent.studies.overlay import STYLES

METRICS = {
    "reward/mean": "Reward",
    "policy/entropy": "Entropy",
    "kl/reference": "KL divergence from the reference",
    "kl/sequence": "KL divergence from the reference, per completion",
    "kl/update": "KL divergence of an update",
    "objective/loss": "Loss",
    "completion/length": "Completion length",
    "grad/norm": "Gradient norm",
    "time/step": "Time per step",
}
"""Metric -> title. The loss is drawn where no run has rewards: with rewards its value has no meaning."""

Series = Mapping[int, float]


def overlays(runs: Mapping[str, RunData], extra: Sequence[str] = ()) -> list[Figure]:
    """Every figure that at least one run has numbers for.

    Args:
        runs: by the name that the legend gives them, in the order of :data:`STYLES`.
        extra: more metrics.
    """
    rewarded = any(run.rewarded for run in runs.values())
    metrics = {name: title for name, title in METRICS.items() if not (rewarded and name == "objective/loss")}
    wanted = metrics | {name: name for name in extra if name not in metrics}
    figures = []
    for metric, title in wanted.items():
        series = {name: dict(zip(*run.series(metric), strict=True)) for name, run in runs.items()}
        figures.append(_figure(metric.replace("/", "-"), title, describe(metric).unit, series))
    return [figure for figure in (*_heldout(runs), *figures) if figure is not None]


def _heldout(runs: Mapping[str, RunData]) -> list[Figure | None]:
    """Held-out scores over the evaluations, those of one kind in one figure."""
    kinds: dict[Kind, dict[str, Series]] = {}
    for name, run in runs.items():
        scores = {step_of(row): score_of(row, run.kind) for row in run.heldout}
        values = {step: score.value for step, score in scores.items() if score is not None}
        if values:
            kinds.setdefault(run.kind, {})[name] = values
    return [
        _figure(
            f"heldout-{kind}", f"Held-out {LABELS[kind]}", "", {name: series.get(name, {}) for name in runs}
        )
        for kind, series in kinds.items()
    ]


def _figure(name: str, title: str, unit_text: str, runs: Mapping[str, Series]) -> Figure | None:
    """A line for each run that has values; None where none has."""
    steps = sorted({step for series in runs.values() for step in series})
    if not steps:
        return None
    figure, (axis,) = canvas()
    shown_at = [steps[part[-1]] for part in parts(len(steps))]
    keys, drawn = [], []
    for index, ((label, series), (role, mark)) in enumerate(zip(runs.items(), STYLES, strict=False)):
        if series:
            own = sorted(series)
            values = [series[step] for step in own]
            draw(axis, own, values, Line(f"run{index}", label, role, mark))
            drawn += values
            keys.append(Key(label, role, mark, values=[number(series.get(step)) for step in shown_at]))
    axis.set_ylim(*limits(drawn))
    if unit_text:
        unit(axis, unit_text)
    step_axis(axis, steps)
    horizontal(axis, "step")
    smoothed = any(len(series) > SMOOTH_ABOVE for series in runs.values())
    caption = "Faint: each step; bold: a running mean." if smoothed else ""
    missing = [label for label, series in runs.items() if not series]
    caption += f" Not measured: {', '.join(missing)}." if missing else ""
    x = pixels(axis, shown_at)
    assert not any(map(math.isnan, x))
    return Figure(name, title, render(figure, name), keys, caption.strip(), shown_at, x)

"""Certainty against truth: what training saw and what was right, the early peak, temperatures, logits."""

import statistics
from typing import Any

from klent.control.early_stop import best_row
from klent.kit.svg import Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.text import fixed, number, plural
from klent.report.curves import Line, limits, pixels, step_axis
from klent.report.read import RunData, finite

Row = dict[str, Any]
LEFT = 46


def figures(run: RunData) -> list[Figure]:
    """Every figure of the section that the run's evaluations allow."""
    return [figure for figure in (peak(run), temperatures(run), skewness(run)) if figure]


def best(rows: list[Row]) -> Row:
    """The evaluation with the highest accuracy, of equal ones the first."""
    return max(rows, key=lambda row: float(row["accuracy"]))


def peak(run: RunData) -> Figure | None:
    """Held-out accuracy above what training saw, with the highest accuracy marked in both.

    None with fewer than three evaluations, or where the run's own reward knows what is right.
    """
    rows = run.heldout
    unlabelled = not run.has("reward/mean") or any(finite(row.get("agreement")) is not None for row in rows)
    if len(rows) < 3 or not unlabelled:
        return None
    rewarded = run.has("reward/mean")
    name, label = ("reward/mean", "mean reward in training") if rewarded else ("objective/loss", "loss")
    seen = Line(name, label, "ink")
    figure, (top, bottom) = canvas([1.6, 1.0])
    steps = [int(row["step"]) for row in rows]
    lines = [Line("accuracy", "held-out accuracy", "reward"), Line("kept", "kept", "tone3", "dash")]
    lines.append(Line("agreement", "agreement", "muted", "dash"))
    keys: list[Key] = []
    for line in reversed(lines):
        values = [finite(row.get(line.metric)) for row in rows]
        known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
        if not known:
            continue
        style: dict[str, Any] = {"color": colour(line.role), "linewidth": 1.8, "gid": line.metric}
        style |= {"linestyle": (0, (3, 2))} if line.mark == "dash" else {"marker": "o", "markersize": 3.6}
        top.plot(*zip(*known, strict=True), **style)
        shown = ["–" if value is None else fixed(value) for value in values]
        keys.insert(0, Key(line.label, line.role, line.mark, line.metric, shown))
    ends = [(finite(row.get("low")), finite(row.get("high"))) for row in rows]
    if all(low is not None and high is not None for low, high in ends):
        lows, highs = zip(*ends, strict=True)
        top.fill_between(steps, lows, highs, color=colour("reward"), alpha=0.12, linewidth=0, gid="band")
    at, told = run.series(seen.metric)
    bottom.plot(at, told, color=colour(seen.role), linewidth=1.8, gid=seen.metric.replace("/", "-"))
    bottom.set_ylim(*limits(told))
    for panel in (top, bottom):
        panel.axvline(best(rows)["step"], color=colour("reward"), linewidth=0.9, linestyle=(0, (2, 2)))
        step_axis(panel, steps)
    top.plot(
        best(rows)["step"], best(rows)["accuracy"], "o", markersize=8, color=colour("reward"), gid="peak"
    )
    top.set_ylim(0, 1.02)
    unit(top, "fraction of held-out answers")
    unit(bottom, label if rewarded else "loss, nats")
    horizontal(bottom, "step")
    keys.append(Key(seen.label, seen.role, "line", seen.metric, [_at(at, told, step) for step in steps]))
    caption = f"n = {_sizes(rows)}; band: 95%. {peak_said(rows)}"
    return Figure("peak", "The peak", render(figure, "peak"), keys, caption, steps, pixels(top, steps))


def peak_said(rows: list[Row]) -> str:
    """Where accuracy was highest, and what was lost after, problem by problem where outcomes are there."""
    high, last = best(rows), rows[-1]
    if high is last:
        return f"Accuracy is highest at the end, step {last['step']}."
    said = f"Accuracy was highest at step {high['step']}, {fixed(high['accuracy'])}"
    said += f", and ended at {fixed(last['accuracy'])}"
    change = _paired(high, last)
    if change is not None:
        said += f": {number(change[0], 2)} ± {number(change[1], 2)} on the same problems"
    return said + f". The highest of {plural(len(rows), 'evaluation')} is in part luck."


def _paired(one: Row, other: Row) -> tuple[float, float] | None:
    """Mean change of the share of right answers to a problem, and its 95% margin; problems are the units."""
    pairs = list(zip(one.get("correct") or [], other.get("correct") or [], strict=False))
    if len(pairs) < 2:
        return None
    change = [statistics.fmean(after) - statistics.fmean(before) for before, after in pairs]
    return statistics.fmean(change), 1.96 * statistics.stdev(change) / len(change) ** 0.5


def temperatures(run: RunData) -> Figure | None:
    """Accuracy against sampling temperature: before training, at the peak and at the end."""
    rows = run.heldout
    own = finite(run.setting("rollout", "temperature")) or 1.0
    if not rows or len(_by_temperature(rows[-1], own)) < 2:
        return None
    figure, (panel,) = canvas(left=LEFT)
    high = best(rows)
    drawn = [(rows[0], "before training", "muted", "--")] if rows[0]["step"] == 0 else []
    if high is not rows[0] and high is not rows[-1]:
        drawn.append((high, f"step {high['step']}, the peak", "tone3", ":"))
    if rows[-1]["step"]:
        drawn.append((rows[-1], f"step {rows[-1]['step']}", "reward", "-"))
    keys: list[Key] = []
    for row, label, role, style in drawn:
        points = _by_temperature(row, own)
        drawing: dict[str, Any] = {"color": colour(role), "linestyle": style, "linewidth": 1.8}
        panel.plot(*zip(*points, strict=True), marker="o", markersize=4, gid=f"at-{row['step']}", **drawing)
        keys.append(Key(label, role, "line" if style == "-" else "dash"))
    panel.set_ylim(0, 1.02)
    unit(panel, "held-out accuracy", left=LEFT)
    horizontal(panel, "T", left=LEFT)
    caption = f"n = {_sizes(rows)}; greedy (T = 0) is one sample. Drawn in training at T = {number(own)}."
    return Figure("temperatures", "Sampling temperature", render(figure, "temperatures"), keys, caption)


def _by_temperature(row: Row, own: float) -> list[tuple[float, float]]:
    found = {
        float(name.partition("@")[2]): value
        for name in row
        if name.startswith("accuracy@") and (value := finite(row[name])) is not None
    }
    return sorted((found | {own: float(row["accuracy"])}).items())


def skewness(run: RunData) -> Figure | None:
    """Skewness of the raw logits before, during and after: to the right is larger."""
    rows = [row for row in run.heldout if finite(row.get("skewness")) is not None]
    if len(rows) < 2:
        return None
    figure, (panel,) = canvas(left=LEFT)
    steps = [int(row["step"]) for row in rows]
    keys: list[Key] = []
    drawn: list[float] = []
    for line in (
        Line("skewness", "all logits together", "entropy"),
        Line("skewness/position", "mean of positions", "ink", "dash"),
    ):
        values = [float(row[line.metric]) for row in rows]
        style = (0, (3, 2)) if line.mark == "dash" else "-"
        gid = line.metric.replace("/", "-")
        panel.plot(steps, values, "o", linestyle=style, color=colour(line.role), markersize=3.6, gid=gid)
        keys.append(Key(line.label, line.role, line.mark, line.metric, [fixed(value) for value in values]))
        drawn += values
    panel.set_ylim(*limits(drawn))
    step_axis(panel, steps)
    unit(panel, "skewness", left=LEFT)
    horizontal(panel, "step", left=LEFT)
    caption = f"n = {_sizes(rows)}, every position of every answer. Higher: shifted to the right."
    svg = render(figure, "skewness")
    return Figure("skewness", "Skewness of the logits", svg, keys, caption, steps, pixels(panel, steps))


def facts(rows: list[Row]) -> list[tuple[str, str]]:
    """Before -> after of a vote, of agreement and of the logits."""
    names = {
        "majority": "accuracy of a vote",
        "agreement": "agreement",
        "kept": "kept",
        "skewness": "skewness of the logits",
    }
    found = []
    for name, label in names.items():
        before, after = finite(rows[0].get(name)), finite(rows[-1].get(name))
        if before is not None and after is not None:
            found.append((label, f"{fixed(before)} → {fixed(after)}" if len(rows) > 1 else fixed(before)))
    return found


def stopped(run: RunData) -> list[str]:
    """Says which evaluation's weights ``final/`` holds, where the recipe stops early."""
    settings = run.setting("eval", "early_stop")
    if not isinstance(settings, dict) or not run.run.get("finished"):
        return []
    signal, margin = str(settings.get("signal")), finite(settings.get("margin")) or 0.0
    if not run.heldout or any(finite(row.get(signal)) is None for row in run.heldout):
        return []
    step = best_row(run.heldout, signal, margin)["step"]
    last = run.rows[-1]["step"] if run.rows else 0
    return [
        f"By {signal}, which knows no label, step {step} was the best of {last}: final/ holds its weights."
    ]


def _at(steps: list[int], values: list[float], step: int) -> str:
    """The value at a step or at the latest before it."""
    known = [value for at, value in zip(steps, values, strict=True) if at <= step]
    return number(known[-1]) if known else "–"


def _sizes(rows: list[Row]) -> str:
    problems, samples = (int(finite(rows[0].get(key)) or 0) for key in ("problems", "samples"))
    return f"{plural(problems, 'held-out problem')} × {samples}"

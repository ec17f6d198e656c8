"""Draws certainty against truth: the held-out score over training and temperatures, its peak; logit skewness."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from klent.control.early_stop import best_row
from klent.kit.statistics import mean_and_margin
from klent.kit.svg import Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.tables import Row, Table, finite, step_of
from klent.kit.text import fixed, number, plural
from klent.measure.score import LABELS, Kind, kind_of, score_of, temperatures_of
from klent.report.curves import Line, limits, pixels, step_axis
from klent.report.read import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT = 46


def figures(run: RunData) -> list[Figure]:
    """Every figure of the section that the run's evaluations allow."""
    return [figure for figure in (peak(run), temperatures(run), skewness(run)) if figure]


def best(rows: Sequence[Row]) -> Row:
    """The evaluation with the highest score, the first one on a tie."""
    kind = kind_of(rows)
    return max(rows, key=lambda row: _value(row, kind))


def _value(row: Row, kind: Kind) -> float:
    score = score_of(row, kind)
    assert score is not None  # RunData.heldout has no other rows
    return score.value


def peak(run: RunData) -> Figure | None:
    """Held-out score above what training saw, with its highest value marked in both.

    None with fewer than three evaluations, or if the run's own reward already tells right from wrong.
    """
    rows = run.heldout
    unlabelled = not run.rewarded or any(finite(row.get("agreement")) is not None for row in rows)
    if len(rows) < 3 or not unlabelled:
        return None
    rewarded = run.has("reward/mean")
    name, label = ("reward/mean", "mean reward in training") if rewarded else ("objective/loss", "loss")
    seen = Line(name, label, "ink")
    figure, (top, bottom) = canvas([1.6, 1.0])
    steps, high = [step_of(row) for row in rows], best(rows)
    keys = _evaluation_lines(top, rows, steps)
    seen_steps, seen_values = run.series(seen.metric)
    gid = seen.metric.replace("/", "-")
    bottom.plot(seen_steps, seen_values, color=colour(seen.role), linewidth=1.8, gid=gid)
    bottom.set_ylim(*limits(seen_values))
    for panel in (top, bottom):
        panel.axvline(step_of(high), color=colour("reward"), linewidth=0.9, linestyle=(0, (2, 2)))
        step_axis(panel, steps)
    top.plot(step_of(high), _value(high, run.kind), "o", markersize=8, color=colour("reward"), gid="peak")
    top.set_ylim(*_score_limits(rows))
    unit(top, "fraction of held-out answers" if run.kind == "accuracy" else "held-out reward, or fraction")
    unit(bottom, label if rewarded else "loss, nats")
    horizontal(bottom, "step")
    shown = [_latest_before(seen_steps, seen_values, step) for step in steps]
    keys.append(Key(seen.label, seen.role, "line", seen.metric, shown))
    caption = f"n = {_sizes(rows)}; band: 95%. {peak_sentence(rows)}"
    return Figure("peak", "The peak", render(figure, "peak"), keys, caption, steps, pixels(top, steps))


def _evaluation_lines(panel: "Axes", rows: Sequence[Row], steps: Sequence[int]) -> list[Key]:
    """The score with its interval, and the signals that need no label; their legend."""
    kind = kind_of(rows)
    lines = [Line(kind, f"held-out {LABELS[kind]}", "reward"), Line("kept", "kept", "tone3", "dash")]
    lines.append(Line("agreement", "agreement", "muted", "dash"))
    keys: list[Key] = []
    for line in reversed(lines):
        x, y = Table(rows).series(line.metric)
        if not x:
            continue
        dashed = line.mark == "dash"
        panel.plot(
            x,
            y,
            color=colour(line.role),
            linewidth=1.8,
            linestyle=(0, (3, 2)) if dashed else "-",
            marker="" if dashed else "o",
            markersize=3.6,
            gid=line.metric,
        )
        shown = [fixed(finite(row.get(line.metric))) for row in rows]
        keys.insert(0, Key(line.label, line.role, line.mark, line.metric, shown))
    ends = Table(rows).pairs(*(("low", "high") if kind == "accuracy" else ("reward_low", "reward_high")))
    if len(ends) == len(rows):
        _, lows, highs = zip(*ends, strict=True)
        panel.fill_between(steps, lows, highs, color=colour("reward"), alpha=0.12, linewidth=0, gid="band")
    return keys


def peak_sentence(rows: Sequence[Row]) -> str:
    """Where the score was highest and how much was lost after it, paired by problem if outcomes are logged."""
    high, last, kind = best(rows), rows[-1], kind_of(rows)
    name = LABELS[kind].capitalize()
    if high is last:
        return f"{name} is highest at the end, step {last['step']}."
    text = f"{name} was highest at step {high['step']}, {fixed(_value(high, kind))}"
    text += f", and ended at {fixed(_value(last, kind))}"
    change = _paired(high, last, kind)
    if change is not None:
        text += f": {number(change[0], 2)} ± {number(change[1], 2)} on the same problems"
    return text + f". The highest of {plural(len(rows), 'evaluation')} is partly luck."


def _paired(one: Row, other: Row, kind: Kind) -> tuple[float, float] | None:
    """Mean change of each problem's mean reward, with its 95% margin over problems; None if not logged."""
    before, after = (row.get("correct" if kind == "accuracy" else "rewards") for row in (one, other))
    if not isinstance(before, list) or not isinstance(after, list):
        return None
    problems = [
        [[value for sample in problem if (value := finite(sample)) is not None] for problem in pair]
        for pair in zip(before, after, strict=False)
    ]
    changes = [statistics.fmean(a) - statistics.fmean(b) for b, a in problems if a and b]
    return mean_and_margin(changes) if len(changes) > 1 else None


def _score_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """0 to 1, where fractions lie, and further where a mean reward does."""
    kind = kind_of(rows)
    ends = [end for row in rows if (score := score_of(row, kind)) for end in score if end is not None]
    return min([0.0, *ends]), max([1.0, *ends]) + 0.02


def temperatures(run: RunData) -> Figure | None:
    """Score against sampling temperature: before training, at the peak and at the end."""
    rows = run.heldout
    trained_at = finite(run.setting("rollout", "temperature")) or 1.0
    if not rows or len(_by_temperature(rows[-1], run.kind, trained_at)) < 2:
        return None
    figure, (panel,) = canvas(left=LEFT)
    high, first, last = best(rows), step_of(rows[0]), step_of(rows[-1])
    drawn = [(rows[0], "before training", "muted", "--")] if first == 0 else []
    if high is not rows[0] and high is not rows[-1]:
        drawn.append((high, f"step {high['step']}, the peak", "tone3", ":"))
    if last:
        drawn.append((rows[-1], f"step {last}", "reward", "-"))
    keys: list[Key] = []
    for row, label, role, style in drawn:
        x, y = zip(*_by_temperature(row, run.kind, trained_at), strict=True)
        panel.plot(
            x,
            y,
            marker="o",
            markersize=4,
            gid=f"at-{row['step']}",
            color=colour(role),
            linestyle=style,
            linewidth=1.8,
        )
        keys.append(Key(label, role, "line" if style == "-" else "dash"))
    panel.set_ylim(*_score_limits(rows))
    unit(panel, f"held-out {LABELS[run.kind]}", left=LEFT)
    horizontal(panel, "T", left=LEFT)
    caption = f"n = {_sizes(rows)}; greedy (T = 0) is one sample. Trained at T = {number(trained_at)}."
    return Figure("temperatures", "Sampling temperature", render(figure, "temperatures"), keys, caption)


def _by_temperature(row: Row, kind: Kind, trained_at: float) -> list[tuple[float, float]]:
    points = {trained_at: _value(row, kind)}
    for at in temperatures_of(row):
        if at and (score := score_of(row, kind, at)):
            points.setdefault(float(at[1:]), score.value)
    return sorted(points.items())


def skewness(run: RunData) -> Figure | None:
    """Skewness of the raw logits before, during and after training; larger means a longer right tail."""
    rows = [row for row in run.heldout if finite(row.get("skewness")) is not None]
    if len(rows) < 2:
        return None
    figure, (panel,) = canvas(left=LEFT)
    steps = [step_of(row) for row in rows]
    keys: list[Key] = []
    drawn: list[float] = []
    for line in (
        Line("skewness", "all logits together", "entropy"),
        Line("skewness/position", "mean of positions", "ink", "dash"),
    ):
        values = [value for row in rows if (value := finite(row.get(line.metric))) is not None]
        style = (0, (3, 2)) if line.mark == "dash" else "-"
        gid = line.metric.replace("/", "-")
        panel.plot(steps, values, "o", linestyle=style, color=colour(line.role), markersize=3.6, gid=gid)
        keys.append(Key(line.label, line.role, line.mark, line.metric, [fixed(value) for value in values]))
        drawn += values
    panel.set_ylim(*limits(drawn))
    step_axis(panel, steps)
    unit(panel, "skewness", left=LEFT)
    horizontal(panel, "step", left=LEFT)
    caption = f"n = {_sizes(rows)}, every position of every answer. Higher: a longer right tail."
    svg = render(figure, "skewness")
    return Figure("skewness", "Skewness of the logits", svg, keys, caption, steps, pixels(panel, steps))


def before_after(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Before -> after of a vote, of agreement and of the logits."""
    names = {
        "majority": "accuracy of a vote",
        "agreement": "agreement",
        "kept": "kept",
        "skewness": "skewness of the logits",
    }
    lines = []
    for name, label in names.items():
        before, after = finite(rows[0].get(name)), finite(rows[-1].get(name))
        if before is not None and after is not None:
            lines.append((label, f"{fixed(before)} → {fixed(after)}" if len(rows) > 1 else fixed(before)))
    return lines


def stopped(run: RunData) -> list[str]:
    """Which evaluation's weights ``final/`` holds, if the recipe stops early."""
    settings = run.setting("eval", "early_stop")
    if not isinstance(settings, Mapping) or not run.run.get("finished"):
        return []
    signal, margin = str(settings.get("signal")), finite(settings.get("margin")) or 0.0
    rows = run.losses if signal == "loss" else run.heldout
    if not rows or any(finite(row.get(signal)) is None for row in rows):
        return []
    step = step_of(best_row(rows, signal, margin))
    last = run.steps[-1] if run.rows else 0
    words = "held-out loss" if signal == "loss" else f"{signal}, which uses no label"
    return [f"By {words}, step {step} was the best of {last}: final/ holds its weights."]


def _latest_before(steps: Sequence[int], values: Sequence[float], step: int) -> str:
    """The value at a step, or at the latest measured step before it."""
    earlier = [value for measured, value in zip(steps, values, strict=True) if measured <= step]
    return number(earlier[-1]) if earlier else "–"


def _sizes(rows: Sequence[Row]) -> str:
    problems, samples = (int(finite(rows[0].get(key)) or 0) for key in ("problems", "samples"))
    return f"{plural(problems, 'held-out problem')} × {samples}"

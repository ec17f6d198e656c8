"""Draws the standard figures of a run: reward, entropy, KL, length, gradient, speed, time, held-out accuracy.

One function per figure, each from the rows of a run; None if the run did not measure what it shows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from klent.kit.statistics import mean
from klent.kit.svg import BOTTOM, FONT, HEIGHT, TOP, Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.tables import Row, Table, finite, step_of
from klent.kit.text import duration, fixed, number, plural
from klent.measure.findings.reward import pushes_equal_groups
from klent.measure.score import LABELS, Kind, score_of, temperatures_of
from klent.report.curves import Line, Panel, curves, parts, pixels, sizes, step_axis
from klent.report.facts import score_change
from klent.report.read import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = 58
"""Pixels left of an axis whose tick labels are text."""


def reward(run: RunData) -> Figure | None:
    """Mean reward of each step's completions; below it the groups whose rewards do not differ."""
    return curves(
        run,
        "reward",
        "Reward",
        Panel(
            "reward",
            (
                Line("reward/mean", "mean reward", "reward"),
                Line("mixture/policy_reward", "the policy alone, estimated", "ink", "dash"),
            ),
            1.9,
        ),
        Panel(
            "fraction",
            (Line("group/zero_variance", "groups without a difference in reward", "muted", "fill"),),
            full=1.0,
        ),
        note=_equal_rewards(run),
    )


def _equal_rewards(run: RunData) -> str:
    """What a group with equal rewards is in this run."""
    table = Table(run.rows)
    if not table.has("group/zero_variance"):
        return ""
    failed = max(table.series("reward/unscorable")[1], default=0.0) > 0
    counted = " Groups with fewer than two scored completions are counted with them." if failed else ""
    if pushes_equal_groups(table):
        return f"Groups with equal rewards have a gradient in this run.{counted}"
    return f"Completions of a group with equal rewards give no gradient.{counted}"


def loss(run: RunData) -> Figure | None:
    """The loss of a run without rewards. With rewards its value has no meaning, so it is not drawn."""
    if run.rewarded:
        return None
    return curves(run, "loss", "Loss", Panel("nats", (Line("objective/loss", "loss", "reward"),)))


def heldout_loss(run: RunData) -> Figure | None:
    """The loss of held-out completions over the evaluations."""
    if len(run.losses) < 2:
        return None
    panel = Panel("nats per token", (Line("loss", "held-out loss", "reward"),))
    figure = curves(replace(run, rows=run.losses), "heldout-loss", "Held-out loss", panel)
    completions = plural(int(finite(run.losses[0].get("loss_completions")) or 0), "held-out completion")
    n = f"n = {completions}, the same at each of {plural(len(run.losses), 'evaluation')}; nothing is sampled."
    return figure and replace(figure, caption=n)


def entropy(run: RunData) -> Figure | None:
    """Entropy of the sampling distributions; below it the change by each update, measured and predicted."""
    known = run.has("policy/entropy_delta_exact")
    exact = [Line("policy/entropy_delta_exact", "by exact effects", "muted", "dash")] if known else []
    also = ", and by each token's exact effect with one step that all share" if known else ""
    return curves(
        run,
        "entropy",
        "Entropy",
        Panel("nats per token", (Line("policy/entropy", "entropy", "entropy"),), 1.9),
        Panel(
            "change by the update, nats per token",
            (
                Line("policy/entropy_delta", "change", "entropy"),
                Line("policy/entropy_delta_predicted", "predicted", "ink", "dash"),
                *exact,
            ),
        ),
        note=f"Measured on the same tokens before and after the update; predicted by the covariance theorem{also}.",
    )


def kl(run: RunData) -> Figure | None:
    """How far each update moved the distribution, and its distance from the reference."""
    return curves(
        run,
        "kl",
        "KL divergence",
        Panel("per update, nats per token", (Line("kl/update", "per update", "reward"),)),
        Panel("from the reference, nats per token", (Line("kl/reference", "from the reference", "ink"),)),
        Panel("from the reference, nats per completion", (Line("kl/sequence", "per completion", "ink"),)),
    )


def mixture(run: RunData) -> Figure | None:
    """Where a mixture lies between policy and target, and how useful its samples are to the policy."""
    return curves(
        run,
        "mixture",
        "Between policy and target",
        Panel(
            "fraction",
            (
                Line("mixture/alpha", "alpha, the policy's share", "reward"),
                Line("mixture/ess", "effective sample size", "ink", "dash"),
            ),
            1.4,
            full=1.0,
        ),
        Panel(
            "divergence of the mixture, nats per token",
            (
                Line("mixture/kl_policy", "from the policy", "reward"),
                Line("mixture/kl_target", "from the target", "tone3", "dash"),
            ),
            1.4,
        ),
        note="Completions are drawn between the target (alpha 0) and the policy (alpha 1); the effective "
        "sample size is the share of them that remains after importance weighting to the policy.",
    )


def length(run: RunData) -> Figure | None:
    """How long completions are, and how many reach the limit."""
    limit = finite(run.setting("rollout", "max_tokens"))
    return curves(
        run,
        "length",
        "Completion length",
        Panel("tokens", (Line("completion/length", "mean length", "ink"),), 1.9),
        Panel("fraction", (Line("completion/truncated", "cut off at the limit", "down", "fill"),), full=1.0),
        note=f"The limit is {limit:,.0f} tokens." if limit else "",
    )


def gradient(run: RunData) -> Figure | None:
    """Norm of the gradient, and the share of tokens without one."""
    clip = finite(run.setting("optimizer", "max_grad_norm"))
    return curves(
        run,
        "gradient",
        "Gradient",
        Panel("norm before clipping", (Line("grad/norm", "gradient norm", "ink"),), 1.9),
        Panel(
            "fraction",
            (Line("objective/zero_fraction", "tokens with coefficient 0", "muted", "fill"),),
            full=1.0,
        ),
        note=f"Norms above {number(clip)} are clipped." if clip else "",
    )


def agreement(run: RunData) -> Figure | None:
    """Whether sampler and trainer agree about the model, and how often the ratio was clipped."""
    return curves(
        run,
        "agreement",
        "Sampler against trainer",
        Panel("mean |logp − logp_gen|, nats", (Line("policy/logp_mismatch", "mismatch", "ink"),), 1.9),
        Panel(
            "fraction of tokens",
            (
                Line("objective/clip_high", "clipped above", "reward"),
                Line("objective/clip_low", "clipped below", "down", "dash"),
            ),
        ),
        note="The same token under the same weights: only rounding should differ.",
    )


def speed(run: RunData) -> Figure | None:
    """Tokens per second of sampling and of training."""
    return curves(
        run,
        "speed",
        "Speed",
        Panel("sampled, tokens per second", (Line("tokens/rollout_per_second", "sampled", "tone1"),)),
        Panel("trained, tokens per second", (Line("tokens/train_per_second", "trained", "tone3"),)),
    )


def time(run: RunData) -> Figure | None:
    """Seconds of each step, stacked by phase."""
    seconds = time_parts(run)
    if not seconds:
        return None
    groups = parts(len(run.rows))
    all_steps = run.steps
    steps = [all_steps[group[-1]] for group in groups]
    figure, (panel,) = canvas()
    base = [0.0] * len(steps)
    keys = []
    for label, of_phase in seconds.items():
        values = [mean([of_phase[index] for index in group]) for group in groups]
        tops = [low + value for low, value in zip(base, values, strict=True)]
        _stack(panel, steps, base, values, label)
        floors = [_floor(run, label, group) for group in groups]
        shown = [f"{fixed(v, 1)} s{floor}" for v, floor in zip(values, floors, strict=True)]
        keys.append(Key(label, TONES[label], "fill", f"time/{label}", shown))
        base = tops
    unit(panel, "seconds")
    step_axis(panel, steps)
    horizontal(panel, "step")
    panel.set_ylim(0, max(base) * 1.05 or 1)
    total = sum(sum(values) for values in seconds.values())
    caption = f"n = {sizes(run)}, {duration(total)} in all."
    whole_run = [(label, _floor(run, label, range(len(run.rows)))) for label in seconds]
    multiples = [f"{label} took {times.removeprefix(', ')}" for label, times in whole_run if times]
    if multiples:
        caption += f" {'; '.join(multiples).capitalize()} (its matrix products alone, on this machine)."
    x = pixels(panel, steps)
    return Figure("time", "Time of a step", render(figure, "time"), keys, caption, steps, x)


def _stack(panel: "Axes", steps: list[int], base: list[float], values: list[float], label: str) -> None:
    """One phase on top of those below it: an area in a long run, bars in a short one."""
    ink = colour(TONES[label])
    if len(steps) > 60:
        tops = [low + value for low, value in zip(base, values, strict=True)]
        panel.fill_between(steps, base, tops, color=ink, linewidth=0, gid=f"time-{label}")
        return
    width = 0.72 if len(steps) > 3 else 0.3
    bars = panel.bar(steps, values, width, bottom=base, color=ink, linewidth=0)
    for step, bar in zip(steps, bars, strict=True):
        bar.set_gid(f"time-{label}-{step}")


def _floor(run: RunData, label: str, indices: Sequence[int]) -> str:
    """How many times its matrix products alone a phase took, as text, if both were measured."""
    names = (f"time/{label}", f"time/{label}_floor")
    pairs = [[finite(run.rows[index].get(name)) for name in names] for index in indices]
    measured = [(spent, least) for spent, least in pairs if spent is not None and least]
    if not measured:
        return ""
    return f", {fixed(sum(s for s, _ in measured) / sum(f for _, f in measured), 1)}x its floor"


TONES = {"rollout": "tone1", "score": "tone2", "train": "tone3", "rest": "tone4"}


def time_parts(run: RunData) -> dict[str, list[float]]:
    """Seconds of rollout, score, train and the rest in every row; empty if no time was measured."""
    if not run.has("time/step"):
        return {}
    seconds: dict[str, list[float]] = {name: [] for name in TONES}
    for row in run.rows:
        phases = {name: finite(row.get(f"time/{name}")) or 0.0 for name in ("rollout", "score", "train")}
        for name, value in phases.items():
            seconds[name].append(value)
        seconds["rest"].append(max(0.0, (finite(row.get("time/step")) or 0.0) - sum(phases.values())))
    return {name: values for name, values in seconds.items() if any(values)}


def accuracy(run: RunData) -> Figure | None:
    """Held-out accuracy, or mean reward, with its 95% interval at every evaluation."""
    rows = run.heldout
    if not rows:
        return None
    few = len(rows) <= 5
    figure, (panel,) = canvas(height=TOP + BOTTOM + 52 * len(rows) if few else HEIGHT, left=NAMES)
    for index, row in enumerate(rows):
        position = index if few else step_of(row)
        role = "reward" if index == len(rows) - 1 or not few else "muted"
        _interval(panel, position, row, run.kind, role, across=few)
    if few:
        panel.set_yticks(range(len(rows)), [_when(row, rows) for row in rows])
        panel.set_ylim(len(rows) - 0.45, -0.65)
        panel.set_xlim(*_range(rows, run.kind))
        panel.grid(visible=False, axis="y")
        panel.grid(axis="x", color=colour("rule"), linewidth=0.8)
        horizontal(panel, LABELS[run.kind], left=NAMES)
    else:
        panel.set_ylim(*_range(rows, run.kind))
        unit(panel, LABELS[run.kind], left=NAMES)
        horizontal(panel, "step", left=NAMES)
    problems, samples = (int(finite(rows[0].get(key)) or 0) for key in ("problems", "samples"))
    counted = f"{plural(problems, 'held-out problem')}, {plural(samples, 'sample')} per problem"
    if run.kind == "preference":
        counted = plural(problems, "held-out pair")
    caption = f"n = {counted}; 95% intervals."
    others = [f"{word} {score_change(run, at)}" for at, word in temperatures_of(rows[-1]).items() if at]
    caption += f" {'; '.join(others).capitalize()}." if others else ""
    return Figure("accuracy", f"Held-out {LABELS[run.kind]}", render(figure, "accuracy"), [], caption)


def _range(rows: Sequence[Row], kind: Kind) -> tuple[float, float]:
    """An axis from 0 to 1, and further where graded rewards are beyond."""
    scores = [score for row in rows if (score := score_of(row, kind))]
    ends = [end for score in scores for end in score if end is not None]
    low, high = min([0.0, *ends]), max([1.0, *ends])
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def _interval(panel: "Axes", position: float, row: Row, kind: Kind, role: str, *, across: bool) -> None:
    """A point and its interval, horizontal or vertical."""
    score = score_of(row, kind)
    assert score is not None  # RunData.heldout has no other rows
    value, low, high = score
    if low is not None and high is not None:
        ends = ([low, high], [position, position]) if across else ([position, position], [low, high])
        panel.plot(*ends, color=colour(role), linewidth=2.2, alpha=0.55, gid=f"interval-{row['step']}")
    spot = ([value], [position]) if across else ([position], [value])
    panel.plot(*spot, "o", color=colour(role), markersize=9 if across else 5, gid=f"accuracy-{row['step']}")
    if not across:
        return
    _label(panel, value, position, 9, "bottom", "ink", FONT + 1.5)
    for end in (low, high):
        if end is not None:
            _label(panel, end, position, -8, "top", "muted", FONT - 1)


def _label(
    panel: "Axes", x: float, y: float, away: int, side: Literal["bottom", "top"], ink: str, size: float
) -> None:
    """The number ``x`` written at (x, y), ``away`` pixels above it."""
    panel.annotate(
        fixed(x),
        (x, y),
        (0, away),
        textcoords="offset pixels",
        ha="center",
        va=side,
        color=colour(ink),
        fontsize=size,
    )


def _when(row: Row, rows: Sequence[Row]) -> str:
    if row["step"] == 0:
        return "before"
    return "after" if row is rows[-1] and len(rows) == 2 and rows[0]["step"] == 0 else f"step {row['step']}"

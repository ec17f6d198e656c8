"""Draws where entropy goes: covariance, forks, selected tokens, predicted change; with two tables."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from klent.kit.statistics import ends
from klent.kit.svg import Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.tables import finite, step_of
from klent.kit.text import fixed, number, plural, share
from klent.report.curves import Line, Panel, curves
from klent.report.facts import updates
from klent.report.read import RunData, early_middle_late
from klent.report.samples import visible

FORKS_SHOWN = 12
FORK_CHARACTERS = 24
LEFT = 46


def figures(run: RunData) -> list[Figure]:
    """Every figure of the section that the run's metrics allow."""
    made = (theorem(run), covariance(run), selected(run), forks(run), ceiling(run), order_two(run))
    return [figure for figure in made if figure]


def theorem(run: RunData) -> Figure | None:
    """Predicted against measured change of entropy, one point per update; on the line they agree."""
    changes = updates(run)
    if len(changes) < 2:
        return None
    stride = -(-len(changes) // 400)
    figure, (panel,) = canvas(left=LEFT)
    values = [value for _, *pair in changes for value in pair]
    room = 0.08 * (max(values) - min(values)) or 1.0
    ends_at = [min([*values, 0.0]) - room, max([*values, 0.0]) + room]
    panel.plot(
        ends_at, ends_at, color=colour("muted"), linewidth=0.9, linestyle=(0, (3, 2)), gid="as-predicted"
    )
    for step, measured, predicted in changes[::stride]:
        panel.plot(
            [predicted],
            [measured],
            "o",
            alpha=0.8,
            gid=f"update-{step:.0f}",
            color=colour("entropy"),
            markersize=5,
            markeredgewidth=0,
        )
    panel.set_xlim(*ends_at)
    panel.set_ylim(*ends_at)
    panel.axhline(0, color=colour("muted"), linewidth=0.7)
    unit(panel, "measured change per update, nats per token", left=LEFT)
    horizontal(panel, "predicted", left=LEFT)
    keys = [Key("one update", "entropy", "dot"), Key("as predicted", "muted", "dash")]
    every = f" (every {stride}th is drawn)" if stride > 1 else ""
    caption = (
        f"n = {plural(len(changes), 'step')} with an update{every}, each measured on the same tokens before "
        "and after. The prediction is first order in the size of the update; Curves, Entropy shows both over time."
    )
    return Figure("theorem", "Predicted against measured", render(figure, "theorem"), keys, caption)


def covariance(run: RunData) -> Figure | None:
    """Mean covariance of the tokens that have the largest, over time."""
    lines = [
        Line("covariance/top_0.02", "top 0.02%", "tone4"),
        Line("covariance/top_0.2", "top 0.2%", "tone3"),
        Line("covariance/top_2", "top 2%", "tone1"),
        Line("covariance/top_20", "top 20%", "ink"),
    ]
    column = [[finite(row.get(line.metric)) for row in run.rows] for line in lines]
    few = (
        run.has("covariance/top_0.2") and column[0] == column[1]
    )  # then the top 0.2% and the top 0.02% are the same single token
    note = "With so few tokens, the top 0.02% and 0.2% are the same single token. " if few else ""
    return curves(
        run,
        "covariance",
        "Covariance of log-probability and advantage",
        Panel("tokens with the largest covariance", tuple(lines[1:] if few else lines), 1.6),
        Panel("all tokens", (Line("policy/covariance", "all", "entropy"),)),
        note=f"{note}A tail far above the rest means that few tokens spend the entropy.",
    )


def selected(run: RunData) -> Figure | None:
    """All tokens, the selected ones and the rest; None where no token was ever selected."""
    if not run.has("selected/entropy"):
        return None
    return curves(
        run,
        "three-ways",
        "All tokens, the selected, the rest",
        Panel(
            "entropy, nats per token",
            (
                Line("policy/entropy", "all", "ink"),
                Line("selected/entropy", "selected", "entropy"),
                Line("rest/entropy", "rest", "muted", "dash"),
            ),
            1.4,
        ),
        Panel(
            "covariance, nats × advantage",
            (
                Line("selected/covariance", "selected, covariance", "entropy"),
                Line("rest/covariance", "rest, covariance", "muted", "dash"),
            ),
        ),
        note="Selected: chosen by the recipe's selector or, without one, tokens whose coefficient is not 0.",
    )


def forks(run: RunData) -> Figure | None:
    """The share of entropy and gradient on the 20% of tokens with the highest entropy."""
    return curves(
        run,
        "forks",
        "The 20% of tokens with the highest entropy",
        Panel(
            "their share",
            (
                Line("forks/entropy_share", "of the entropy", "entropy"),
                Line("forks/gradient_share", "of the gradient", "reward"),
                Line("forks/token_share", "of tokens with a gradient", "muted", "dash"),
            ),
            1.6,
            full=1.0,
        ),
        Panel("lowest entropy among them, nats", (Line("forks/threshold", "threshold", "ink"),)),
        note="The share of the gradient is that of the sum of |coefficient|.",
    )


def ceiling(run: RunData) -> Figure | None:
    """The ceiling as predicted after each step."""
    return (
        curves(
            run,
            "ceiling-online",
            "Ceiling as predicted after each step",
            Panel(
                "reward",
                (
                    Line("law/ceiling_high", "95% interval", "muted", "dash"),
                    Line("law/ceiling", "predicted ceiling", "reward"),
                    Line("law/ceiling_low", "its lower end", "muted", "dash"),
                    Line("reward/mean", "reward of the step", "ink"),
                ),
            ),
            note="Left out where the fit supports no ceiling: few steps, a poor fit, or a wide interval.",
        )
        if run.has("law/ceiling")
        else None
    )


def order_two(run: RunData) -> Figure | None:
    """Shannon's entropy with Rényi's, or with the probability that two draws agree."""
    lines = [Line("policy/entropy", "Shannon", "entropy")]
    lines += [Line("policy/renyi", "Rényi, order 2", "ink", "dash")] if run.has("policy/renyi") else []
    if not run.has("policy/collision"):
        return None
    return curves(
        run,
        "order-two",
        "Entropy of order 2",
        Panel("nats per token", tuple(lines), 1.4),
        Panel("fraction", (Line("policy/collision", "two draws agree", "tone1"),), full=1.0),
        note="Order 2 weights the most likely tokens: it moves first when one token takes over.",
    )


def ways(run: RunData) -> list[tuple[str, list[str]]]:
    """All, selected and other tokens in numbers: share, entropy and covariance, start → end."""

    def change(values: Sequence[float], form: Callable[[float], str] = fixed) -> str:
        if not values:
            return "–"
        start, end, _ = ends(values)
        return f"{form(start)} → {form(end)}" if len(values) > 1 else form(end)

    if not run.has("selected/fraction"):
        return []
    part = run.series("selected/fraction")[1]
    rows = [
        ("all", [1.0], "policy/entropy", "policy/covariance"),
        ("selected", part, "selected/entropy", "selected/covariance"),
        ("rest", [1 - value for value in part], "rest/entropy", "rest/covariance"),
    ]
    return [
        (
            name,
            [change(of, share), change(run.series(h)[1]), change(run.series(c)[1], lambda v: number(v, 2))],
        )
        for name, of, h, c in rows
    ]


class Fork(NamedTuple):
    """One row of the table of forks: token, mean entropy, count, bar length in percent of the longest."""

    text: str
    mean: str
    drawn: str
    bar: str


class ForkTable(NamedTuple):
    """The tokens of highest mean entropy in one step."""

    step: int
    rows: list[Fork]


def fork_tables(run: RunData) -> list[ForkTable]:
    """Tokens of highest mean entropy in an early, a middle and a late step."""
    by_step = {step_of(row): row.get("forks") for row in run.forks}
    steps = early_middle_late(sorted(step for step, listed in by_step.items() if any(_measured(listed))))
    return [ForkTable(step, _forks(by_step[step])[:FORKS_SHOWN]) for step in steps]


def _measured(listed: object) -> Iterator[bool]:
    """Whether each row of a list has an entropy."""
    for row in listed if isinstance(listed, list) else []:
        yield isinstance(row, dict) and finite(row.get("entropy")) is not None


def _forks(listed: object) -> list[Fork]:
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    entropies = [entropy for row in rows if (entropy := finite(row.get("entropy"))) is not None]
    high = max(entropies, default=0.0)
    return [
        Fork(
            _shortened(str(row.get("word", ""))),
            fixed(entropy),
            number(finite(row.get("count"))),
            f"{100 * max(0.0, entropy) / high:.0f}" if high > 0 else "0",
        )
        for row in rows
        if (entropy := finite(row.get("entropy"))) is not None
    ]


def _shortened(text: str) -> str:
    return visible(text if len(text) <= FORK_CHARACTERS else text[:FORK_CHARACTERS] + "…")

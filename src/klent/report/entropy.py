"""Where entropy goes: figures and tables of covariance, forks, selected tokens, and of what was predicted."""

from collections.abc import Sequence
from typing import Any

from klent.kit.svg import Figure, Key, canvas, colour, horizontal, render, unit
from klent.kit.text import fixed, number, plural, share
from klent.report.curves import Line, Panel, curves
from klent.report.facts import ends
from klent.report.read import RunData, early_middle_late, finite
from klent.report.samples import visible

WORDS_SHOWN = 12
WORD_CHARACTERS = 24
LEFT = 46


def figures(run: RunData) -> list[Figure]:
    """Every figure of the section that the run's metrics allow."""
    made = (theorem(run), covariance(run), selected(run), forks(run), ceiling(run), order_two(run))
    return [figure for figure in made if figure]


def theorem(run: RunData) -> Figure | None:
    """Predicted against measured change of entropy, a point an update; on the line they agree."""
    known = [
        (row["step"], predicted, measured)
        for row in run.rows
        if (measured := finite(row.get("policy/entropy_delta"))) is not None
        and (predicted := finite(row.get("policy/entropy_delta_predicted"))) is not None
    ]
    if len(known) < 2:
        return None
    known = known[:: -(-len(known) // 400)]
    figure, (panel,) = canvas(left=LEFT)
    values = [value for _, *pair in known for value in pair]
    room = 0.08 * (max(values) - min(values)) or 1.0
    ends_at = [min([*values, 0.0]) - room, max([*values, 0.0]) + room]
    panel.plot(
        ends_at, ends_at, color=colour("muted"), linewidth=0.9, linestyle=(0, (3, 2)), gid="as-predicted"
    )
    for step, predicted, measured in known:
        dot: dict[str, Any] = {"color": colour("entropy"), "markersize": 5, "markeredgewidth": 0}
        panel.plot([predicted], [measured], "o", alpha=0.8, gid=f"update-{step}", **dot)
    panel.set_xlim(*ends_at)
    panel.set_ylim(*ends_at)
    panel.axhline(0, color=colour("muted"), linewidth=0.7)
    unit(panel, "measured change of an update, nats per token", left=LEFT)
    horizontal(panel, "predicted", left=LEFT)
    keys = [Key("an update", "entropy", "dot"), Key("as predicted", "muted", "dash")]
    caption = (
        f"n = {plural(len(known), 'update')}, each measured on the same tokens before and after. The "
        "prediction is first order in the size of the update; over time both are drawn under Curves, Entropy."
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
    few = column[0] == column[1]  # then the top 0.2% are one token, as the top 0.02% are
    note = "Of few tokens the top 0.02% and 0.2% are one and the same token. " if few else ""
    return curves(
        run,
        "covariance",
        "Covariance of log-probability and advantage",
        Panel("of the tokens with the largest", tuple(lines[1:] if few else lines), 1.6),
        Panel("of all tokens", (Line("policy/covariance", "all", "entropy"),)),
        note=f"{note}Where the tail stands far above the rest, few tokens spend the entropy.",
    )


def selected(run: RunData) -> Figure | None:
    """All tokens, the selected ones and the rest."""
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
        note="Selected: chosen by the recipe's selector; without one, with a coefficient other than 0.",
    )


def forks(run: RunData) -> Figure | None:
    """What the fifth of the tokens with the highest entropy holds."""
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
        note="The gradient's share is of the sum of |coefficient|.",
    )


def ceiling(run: RunData) -> Figure | None:
    """The ceiling as it was predicted after each step."""
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
            note="Silent where the fit says nothing: few steps, little explained, or a wide interval.",
        )
        if run.has("law/ceiling")
        else None
    )


def order_two(run: RunData) -> Figure | None:
    """Shannon's entropy with Rényi's, or with the chance that two draws agree."""
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
        note="Order 2 looks at the head of the distribution: it moves first where one token takes over.",
    )


def ways(run: RunData) -> list[tuple[str, list[str]]]:
    """The three-way view in numbers: share, entropy and covariance, start → end."""

    def change(values: Sequence[float], form: Any = fixed) -> str:
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


def fork_tables(run: RunData) -> list[dict[str, Any]]:
    """Words of highest mean entropy in an early, a middle and a late step."""
    known = {row["step"]: _words(row.get("forks")) for row in run.forks}
    steps = early_middle_late(sorted(step for step, words in known.items() if words))
    return [{"step": step, "words": known[step][:WORDS_SHOWN]} for step in steps]


def _words(found: Any) -> list[tuple[str, str, str, str]]:
    """Word, mean entropy, count, and the length of its bar in percent of the longest."""
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    known = [(str(r.get("word", "")), finite(r.get("entropy")), finite(r.get("count"))) for r in rows]
    high = max((entropy for _, entropy, _ in known if entropy is not None), default=0.0)
    return [
        (
            visible(word if len(word) <= WORD_CHARACTERS else word[:WORD_CHARACTERS] + "…"),
            fixed(entropy),
            number(count),
            f"{100 * max(0.0, entropy) / high:.0f}" if high > 0 else "0",
        )
        for word, entropy, count in known
        if entropy is not None
    ]

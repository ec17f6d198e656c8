"""Figures of what only some runs learn: preferences, and the values of a critic."""

from klent.kit.svg import Figure
from klent.report.curves import Line, Panel, curves
from klent.report.read import RunData


def preference(run: RunData) -> Figure | None:
    """How often the better answer scores higher, by how much, and where each of the two went."""
    known = run.has("preference/tied")
    tied = [Line("preference/tied", "prompts without a pair", "muted", "fill")] if known else []
    return curves(
        run,
        "preference",
        "Preferences",
        Panel(
            "fraction of pairs",
            (*tied, Line("preference/accuracy", "in the right order", "reward")),
            1.4,
            full=1.0,
        ),
        Panel("margin, nats", (Line("preference/margin", "better less worse", "ink"),)),
        Panel(
            "moved, nats",
            (
                Line("preference/chosen", "better answers", "reward"),
                Line("preference/rejected", "worse answers", "down", "dash"),
            ),
            1.4,
        ),
        note="Log-probabilities of whole answers, less the reference's where the loss reads them (per token where "
        "it reads lengths). A margin may grow while both lines fall: then other answers gain what these lose.",
    )


def critic(run: RunData) -> Figure | None:
    """What a critic's values are worth, and how far they are from the returns."""
    return (
        curves(
            run,
            "critic",
            "Critic",
            Panel(
                "explained variance",
                (Line("value/explained", "of the returns, before the update", "reward"),),
                1.6,
            ),
            Panel(
                "reward",
                (
                    Line("value/mean", "mean value", "ink"),
                    Line("reward/mean", "mean reward", "reward", "dash"),
                ),
            ),
            Panel("reward squared", (Line("value/error", "squared error", "ink"),)),
            note="1 explains all of the returns' variance, 0 is as good as a constant.",
        )
        if run.has("value/mean")
        else None
    )

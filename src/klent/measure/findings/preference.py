"""Signatures of training on pairs of answers."""

from klent.kit.tables import Table
from klent.kit.text import fixed
from klent.measure.findings.finding import Finding, stretch, trailing

LEAST = 1.0
"""Nats that a better answer's log-probability must have fallen by to count as displaced."""


def likelihood_displacement(table: Table) -> Finding | None:
    """The better answers become less likely while the margin grows: the worse ones only fall faster.

    Both are log-probabilities of whole answers less the reference's, 0 where the policy is the reference.
    """
    if not all(table.has(f"preference/{name}") for name in ("chosen", "rejected", "margin")):
        return None
    steps, chosen = table.series("preference/chosen")
    rejected, margin = (table.series(f"preference/{name}")[1] for name in ("rejected", "margin"))
    if not len(chosen) == len(rejected) == len(margin):
        return None
    moved = [[value - values[0] for value in trailing(values)] for values in (chosen, rejected, margin)]
    displaced = [up < -LEAST and down < -LEAST and apart > 0 for up, down, apart in zip(*moved, strict=True)]
    span = stretch(steps, displaced)
    if span is None:
        return None
    return Finding(
        "likelihood_displacement",
        "Likelihood displacement",
        *span,
        f"the better answers lost {fixed(-moved[0][-1], 1)} nats while the margin grew by "
        f"{fixed(moved[2][-1], 1)}: what both answers lost went to texts that are in no pair.",
        "Read samples for what the policy says instead. Imitate the better answers as well (loss.orpo.coef=0), lower "
        "optimizer.lr or the number of steps, or leave out pairs whose answers are nearly the same.",
        0.5,
    )

"""Signatures of a critic: values that explain nothing, and a value loss that drowns the policy's gradient."""

from klent.kit.tables import Table
from klent.kit.text import number, share
from klent.measure.findings.finding import Finding, latest, stretch, trailing

WARM_UP = 10
"""Steps that a critic is given to learn something: its head starts at 0."""


def blind_critic(table: Table) -> Finding | None:
    """After its first steps a critic explains less than a twentieth of the returns."""
    steps, values = table.series("value/explained")
    span = stretch(steps[WARM_UP:], [value < 0.05 for value in trailing(values)[WARM_UP:]])
    if span is None or span[1] is not None:
        return None
    return Finding(
        "blind_critic",
        "The critic explains nothing",
        *span,
        f"its values explain {number(latest(values), 2)} of the variance of the returns (1 is all of it, 0 is a "
        "constant): as a baseline they add noise or nothing.",
        "Raise critic.lr, start it from a reward model (critic.model), or give it more steps. With several "
        "completions of a prompt, group_advantage needs no critic.",
        0.55,
    )


def swamped_trunk(table: Table) -> Finding | None:
    """On layers that policy and critic share, nearly all of the gradient is the critic's."""
    steps, values = table.series("value/gradient_share")
    span = stretch(steps, [value > 0.9 for value in trailing(values)])
    if span is None:
        return None
    return Finding(
        "swamped_trunk",
        "The critic's loss swamps the policy's gradient",
        *span,
        f"up to {share(max(values))} of the gradient that reaches the shared layers is the critic's.",
        "Lower loss.value.coef, bring rewards to a size near 1, or give the critic layers of its own "
        "(critic.trunk: own).",
        0.7 if span[1] is None else 0.4,
    )

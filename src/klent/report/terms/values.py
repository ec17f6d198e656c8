"""Metrics of values that are learnt from logged play."""

from klent.report.terms.term import Term

VALUES: dict[str, Term] = {
    "bellman/target": Term(
        "fraction",
        "Mean over actions of the weight that `bellman` gives: the Bellman target, as a value in [0, 1].",
        "It rises from step to step as values travel back from the rewards, and then stands still.",
    ),
    "bellman/clipped": Term(
        "fraction",
        "Share of actions whose target was outside [0, 1] before it was clipped.",
        "Above 0 some turn earns more, or less, than bellman/least and bellman/most allow: set task.returns.",
    ),
    "bellman/unsupported": Term(
        "fraction",
        "Share of states at which the model of the data has no action of at least `bellman.min_behaviour`.",
        "The least value is taken there; lower min_behaviour if it is more than a few in a hundred.",
    ),
    "bellman/error": Term(
        "value²",
        "Of implicit Q-learning: mean square of an action's value less its target, values in [0, 1].",
        "It falls as values settle; what stays is what cannot be told apart at an action.",
    ),
    "bellman/advantage": Term(
        "value",
        "Of implicit Q-learning: mean of an action's value less the state's, under the target network.",
        "Below 0 with tau above a half: the state is worth what its better actions are.",
    ),
    "bellman/apart": Term(
        "value",
        "Of implicit Q-learning: mean distance of the two heads' values of an action, under the target network.",
        "It falls towards half of `conservative`; a large one says that values are not settled.",
    ),
    "bellman/least": Term("reward", "The sum of rewards that is the value 0.", "Constant in a run."),
    "bellman/most": Term("reward", "The sum of rewards that is the value 1.", "Constant in a run."),
}
"""Metrics of values -> Term."""

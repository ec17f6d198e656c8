"""Metrics of values that are learnt from logged play."""

from klent.report.terms.term import Term

VALUES: dict[str, Term] = {
    "bellman/target": Term(
        "fraction",
        "Mean over actions of the Bellman target, as a value in [0, 1] (the stream `weight`).",
        "It rises as values propagate back from the rewards to earlier turns, and then stays constant.",
    ),
    "bellman/clipped": Term(
        "fraction",
        "Share of actions whose target was outside [0, 1] before it was clipped.",
        "Above 0, some returns lie outside bellman/least to bellman/most: set task.returns.",
    ),
    "bellman/unsupported": Term(
        "fraction",
        "Share of states at which the model of the data gives no action a probability of `bellman.min_behaviour`.",
        "Such a state gets the least value; if it is more than a few percent, lower min_behaviour.",
    ),
    "bellman/error": Term(
        "value²",
        "Implicit Q-learning: mean of (value of an action - its target)², with values in [0, 1].",
        "It falls as values converge; what remains is the variance of outcomes after the same action.",
    ),
    "bellman/advantage": Term(
        "value",
        "Implicit Q-learning: mean of (value of an action - value of its state), under the target network.",
        "Below 0 if tau is above 0.5: the value of a state is then that of its better actions.",
    ),
    "bellman/apart": Term(
        "value",
        "Implicit Q-learning: mean distance between the two heads' values of an action, under the target network.",
        "It falls towards half of `conservative`; if it is large, values have not converged.",
    ),
    "bellman/least": Term("reward", "The return that corresponds to the value 0.", "Constant in a run."),
    "bellman/most": Term("reward", "The return that corresponds to the value 1.", "Constant in a run."),
}
"""Metrics of values -> Term."""

"""Values from logged play: keys that need each other, and keys that nothing would read."""

from collections.abc import Iterator

from klent.config.checks import streams
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.task import TrajectorySettings
from klent.streams.registry import OF_BELLMAN


def value_problems(recipe: Recipe) -> Iterator[Problem]:
    """A Bellman target needs logged play and a term that reads it; such a term needs the target."""
    logged = isinstance(recipe.task, TrajectorySettings)
    if logged and recipe.rollout.sampled:
        reason = "transformers would sample, and trajectories are replayed"
        yield Problem(("rollout", "engine"), f"{reason}; set engine: dataset")
    if isinstance(recipe.task, TrajectorySettings) and recipe.bellman is None:
        yield from _unread_problems(recipe.task)
    reads = sorted(OF_BELLMAN & streams(recipe))
    if recipe.bellman is None:
        if reads:
            fix = "set bellman: {}, and task: {trajectories: FILE}"
            yield Problem(("bellman",), f"is missing: the loss reads {reads[0]}, which it gives; {fix}")
        return
    if not reads:
        reason = f"is not used: no term of the loss ({', '.join(recipe.loss)}) reads weight"
        yield Problem(("bellman",), f"{reason}; remove it, or use method qsft")
    if not logged:
        yield Problem(("bellman",), "needs logged play to learn from; set task: {trajectories: FILE}")
    if recipe.lora is not None:
        reason = "trains adapters, and a dummy action is a row of the head, which adapters do not train"
        yield Problem(("lora",), f"{reason}; remove it")
    if recipe.bellman.target == "returns" and recipe.reference is not None:
        yield Problem(("reference",), "is not used with bellman.target: returns; remove it")


def _unread_problems(task: TrajectorySettings) -> Iterator[Problem]:
    """What a task says of returns, where no values are learnt from them."""
    if task.returns is not None:
        reason = "is not used: the bounds are of values, and there is no bellman that learns any"
        yield Problem(("task", "returns"), f"{reason}; remove it, or use method qsft")
    if task.discount != 1 and task.keep is None:
        reason = "is not used: no values are learnt, and no episodes chosen by their return"
        yield Problem(("task", "discount"), f"{reason}; remove it, or set task.keep")

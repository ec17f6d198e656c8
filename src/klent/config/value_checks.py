"""Values from logged play: keys that need each other, and keys that nothing would read."""

from collections.abc import Iterator

from klent.config.checks import streams
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.task import TrajectorySettings
from klent.config.training import Bellman
from klent.streams.sets import OF_BELLMAN


def value_problems(recipe: Recipe) -> Iterator[Problem]:
    """A Bellman target needs logged play and a term that reads it; such a term needs the target."""
    logged = isinstance(recipe.task, TrajectorySettings)
    if logged and recipe.rollout.sampled:
        reason = "transformers would sample, and trajectories are replayed"
        yield Problem(("rollout", "engine"), f"{reason}; set engine: dataset")
    learns = recipe.bellman is not None and recipe.bellman.target != "constant"
    if isinstance(recipe.task, TrajectorySettings) and not learns:
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
    yield from _target_problems(recipe.bellman)
    yield from _logit_problems(recipe, recipe.bellman)
    if recipe.eval is not None and recipe.eval.temperatures:
        reason = "the player of values needs temperature 1; bellman.beta makes it greedier"
        yield Problem(("eval", "temperatures"), f"is not used: {reason}; remove it")


def _target_problems(bellman: Bellman) -> Iterator[Problem]:
    """Keys of ``bellman`` that its target needs, or does not read."""
    target, path = bellman.target, ("bellman",)
    if target == "constant" and bellman.weight is None:
        reason = "is missing: target constant gives it to every action"
        yield Problem((*path, "weight"), f"{reason}; set it, e.g. 0.5")
    if target != "constant" and bellman.weight is not None:
        yield Problem(
            (*path, "weight"), f"is not used with target: {target}; remove it, or set target: constant"
        )
    if target not in ("bellman", "value") and bellman.rate != Bellman().rate:
        yield Problem(
            (*path, "rate"), f"is not used with target: {target}, which has no target network; remove it"
        )


def _logit_problems(recipe: Recipe, bellman: Bellman) -> Iterator[Problem]:
    """Logits are values, and played as such, exactly where a term learns them."""
    by_value, learnt = bellman.target == "value", "logit" in streams(recipe)
    if by_value and not learnt:
        reason = f"gives values of logits, and no term of the loss ({', '.join(recipe.loss)}) learns any"
        yield Problem(("bellman", "target"), f"value {reason}; use method ilql, or another target")
    if learnt and not by_value:
        reason = f"is {bellman.target}, and a term of the loss learns logits that are values"
        yield Problem(("bellman", "target"), f"{reason}; set target: value")
    if by_value and recipe.critic is None:
        yield Problem(("critic",), "is missing: bellman.target: value reads it; set critic: {trunk: shared}")
    if by_value != (bellman.form == "logit"):
        wanted = "form: logit" if by_value else "form: ratio"
        yield Problem(("bellman", "form"), f"is {bellman.form} with target: {bellman.target}; set {wanted}")


def _unread_problems(task: TrajectorySettings) -> Iterator[Problem]:
    """What a task says of returns, where no values are learnt from them."""
    if task.returns is not None:
        reason = "is not used: the bounds are of values, and there is no bellman that learns any"
        yield Problem(("task", "returns"), f"{reason}; remove it, or use method qsft")
    if task.discount != 1 and task.keep is None:
        reason = "is not used: no values are learnt, and no episodes chosen by their return"
        yield Problem(("task", "discount"), f"{reason}; remove it, or set task.keep")

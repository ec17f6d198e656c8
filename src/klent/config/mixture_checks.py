"""What can be wrong with a recipe's mixture of policy and target."""

from collections.abc import Iterator

from klent.config.checks import Problem
from klent.config.mixture import Alpha, Mixture
from klent.config.model import DataSettings, Recipe, TransformersRollout

_WAYS = ({"fixed"}, {"criterion"}, {"start", "end", "steps"}, {"start", "until_reward"}, {"column"})
_AIMS = ("kl_budget", "entropy", "ess")
_COPIES = ("cross_entropy", "weighted_cross_entropy", "uniform_cross_entropy")


def mixture_problems(recipe: Recipe) -> Iterator[Problem]:
    """A target that is the policy, an alpha said twice or not at all, weights that undo the loss."""
    if not isinstance(recipe.rollout, TransformersRollout) or recipe.rollout.mixture is None:
        return
    mixture = recipe.rollout.mixture
    yield from _alpha_problems(mixture.alpha)
    yield from _source_problems(recipe, mixture.alpha)
    yield from _target_problems(mixture, recipe.rollout.temperature)
    if mixture.distill is not None and not recipe.loss and _is_start(recipe, mixture):
        yield Problem(
            ("rollout", "mixture", "target"),
            "is the policy as it was at the start, so that there is nothing to distil; name a model, or give "
            "it a prompt of its own, e.g. {model: policy, prompt: '{prompt} (the answer is {answer})'}",
        )
    copies = [name for name in recipe.loss if name in _COPIES]
    if mixture.weights is not None and copies:
        yield Problem(
            ("rollout", "mixture", "weights"),
            f"would weigh {copies[0]} back to the policy's own samples, on which its mean gradient is 0; set "
            "weights: null to learn from the mixture's",
        )


def _is_start(recipe: Recipe, mixture: Mixture) -> bool:
    """Whether the target is the policy that the run begins with, asked the same."""
    target = mixture.target
    told = any(x is not None for x in (target.adapter, target.prompt, target.system, target.temperature))
    return target.model == "reference" and recipe.reference in (None, recipe.model) and not told


def _alpha_problems(alpha: Alpha) -> Iterator[Problem]:
    path = ("rollout", "mixture", "alpha")
    given = alpha.model_dump(exclude_none=True).keys() - {"value"}
    if given not in _WAYS:
        has = ", ".join(sorted(given)) or "nothing"
        ways = "{start:, end:, steps:}, {start:, until_reward:} or {column:}"
        yield Problem(path, f"should be one of a number, a criterion, {ways}; has {has}")
    elif alpha.criterion in _AIMS and alpha.value is None:
        yield Problem(path, f"{alpha.criterion} needs a `value` to aim at")
    elif alpha.criterion not in _AIMS and alpha.value is not None:
        yield Problem((*path, "value"), f"is not used: only {', '.join(_AIMS)} aim at one; remove it")
    elif alpha.criterion == "ess" and alpha.value is not None and alpha.value > 1:
        yield Problem((*path, "value"), f"{alpha.value:g} cannot be: ess is a fraction; at most 1")


def _source_problems(recipe: Recipe, alpha: Alpha) -> Iterator[Problem]:
    """Where alpha comes from has to be there."""
    path = ("rollout", "mixture", "alpha")
    if alpha.column is not None and not isinstance(recipe.task, DataSettings):
        yield Problem(
            (*path, "column"),
            f"{alpha.column} cannot be: problems of task.gym have no such column; use task.data",
        )
    if alpha.until_reward is not None and recipe.reward is None:
        yield Problem((*path, "until_reward"), "needs a reward to follow; set `reward`, or give a ramp")


def _target_problems(mixture: Mixture, temperature: float) -> Iterator[Problem]:
    path, target = ("rollout", "mixture", "target"), mixture.target
    if target.model != "policy":
        return
    if target.adapter is not None:
        yield Problem((*path, "adapter"), "cannot be put on the policy, which is training; name a model")
    same = target.temperature is None or target.temperature == temperature
    if target.prompt is None and target.system is None and same:
        yield Problem(
            path,
            "is the policy itself, so that the mixture is the policy too; give it a prompt, a system message "
            "or another temperature",
        )

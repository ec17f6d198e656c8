"""What can be wrong with a recipe's mixture of policy and target."""

from collections.abc import Iterator

from klent.config.binding import shipped, streams_of
from klent.config.mixture import Alpha, MixtureSettings
from klent.config.problems import Problem
from klent.config.recipe import Recipe

_WAYS = ({"fixed"}, {"criterion"}, {"start", "end", "steps"}, {"start", "until_reward"}, {"column"})
_AIMED = ("kl_budget", "entropy", "ess")


def mixture_problems(recipe: Recipe) -> Iterator[Problem]:
    """A target that is the policy itself, alpha given twice or not at all, weights that cancel the loss."""
    mixture = recipe.rollout.mixture
    if mixture is None:
        return
    yield from _alpha_problems(mixture.alpha)
    yield from _source_problems(recipe, mixture.alpha)
    yield from _target_problems(mixture, recipe.rollout.temperature)
    if mixture.distill is not None and not recipe.loss and _is_start(recipe, mixture):
        yield Problem(
            ("rollout", "mixture", "target"),
            "is the policy as it was at the start, so there is nothing to distil; name a model, or give it a "
            "prompt of its own, e.g. {model: policy, prompt: '{prompt} (the answer is {answer})'}",
        )
    distill = mixture.distill
    if distill is not None and distill.forward_above is not None and distill.divergence != "reverse":
        reason = f"{distill.divergence} has the forward KL at every token"
        yield Problem(("rollout", "mixture", "distill", "forward_above"), f"is not used: {reason}; remove it")
    copies = [name for name in recipe.loss if name in imitations()]
    if mixture.weights is not None and copies:
        yield Problem(
            ("rollout", "mixture", "weights"),
            f"would reweight {copies[0]} to the policy's own samples, on which its mean gradient is 0; set "
            "weights: null to learn from the mixture's samples",
        )


def imitations() -> set[str]:
    """Losses that a recipe can name and that weigh every sample alike: they read ``logp`` and ``mask`` alone.

    Under weights policy/q their mean gradient is that of the sum of the policy's probabilities, 0.
    """
    return {name for name, loss in shipped("token_loss").items() if streams_of(loss) <= {"logp", "mask"}}


def _is_start(recipe: Recipe, mixture: MixtureSettings) -> bool:
    """Whether the target is the policy that the run begins with, given the same input."""
    target = mixture.target
    options = (target.adapter, target.prompt, target.system, target.temperature)
    same_model = target.model == "reference" and recipe.reference in (None, recipe.model)
    return same_model and all(option is None for option in options)


def _alpha_problems(alpha: Alpha) -> Iterator[Problem]:
    path = ("rollout", "mixture", "alpha")
    keys = alpha.model_dump(exclude_none=True).keys() - {"value"}
    if keys not in _WAYS:
        has = ", ".join(sorted(keys)) or "nothing"
        ways = "{start:, end:, steps:}, {start:, until_reward:} or {column:}"
        yield Problem(path, f"should be one of a number, a criterion, {ways}; has {has}")
    elif alpha.criterion in _AIMED and alpha.value is None:
        yield Problem(path, f"{alpha.criterion} needs a `value` to aim at; set it")
    elif alpha.criterion not in _AIMED and alpha.value is not None:
        yield Problem((*path, "value"), f"is not used: only {', '.join(_AIMED)} aim at a value; remove it")
    elif alpha.criterion == "ess" and alpha.value is not None and alpha.value > 1:
        yield Problem((*path, "value"), f"{alpha.value:g} must be <= 1: ess is a fraction; e.g. 0.5")


def _source_problems(recipe: Recipe, alpha: Alpha) -> Iterator[Problem]:
    """The column or the reward that alpha is read from must exist."""
    path = ("rollout", "mixture", "alpha")
    if alpha.column is not None and recipe.task.generated:
        reason = f"{alpha.column} does not exist: problems of task.gym have no such column"
        yield Problem((*path, "column"), f"{reason}; use task.data")
    if alpha.until_reward is not None and recipe.reward is None:
        yield Problem((*path, "until_reward"), "needs a reward to follow; set `reward`, or give a ramp")


def _target_problems(mixture: MixtureSettings, temperature: float) -> Iterator[Problem]:
    path, target = ("rollout", "mixture", "target"), mixture.target
    if target.model != "policy":
        return
    if target.adapter is not None:
        yield Problem((*path, "adapter"), "cannot be put on the policy, which is training; name a model")
    same_temperature = target.temperature is None or target.temperature == temperature
    if target.prompt is None and target.system is None and same_temperature:
        yield Problem(
            path,
            "is the policy itself, and so is the mixture; give it a prompt, a system message or another "
            "temperature",
        )

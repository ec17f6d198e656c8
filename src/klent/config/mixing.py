"""What can be wrong with a recipe's mixture of policy and target."""

from collections.abc import Iterator

from klent.config.checks import Problem
from klent.config.mixture import Alpha, Mixture
from klent.config.model import Recipe, TransformersRollout

_AIMS = ("kl_budget", "entropy", "ess")
_COPIES = ("cross_entropy", "weighted_cross_entropy", "uniform_cross_entropy")


def mixture_problems(recipe: Recipe) -> Iterator[Problem]:
    """A target that is the policy, an alpha said twice or not at all, weights that undo the loss."""
    if not isinstance(recipe.rollout, TransformersRollout) or recipe.rollout.mixture is None:
        return
    mixture = recipe.rollout.mixture
    yield from _alpha_problems(mixture.alpha)
    yield from _target_problems(mixture, recipe.rollout.temperature)
    copies = [name for name in recipe.loss if name in _COPIES]
    if mixture.weights is not None and copies:
        yield Problem(
            ("rollout", "mixture", "weights"),
            f"would weigh {copies[0]} back to the policy's own samples, on which its mean gradient is 0; set "
            "weights: null to learn from the mixture's",
        )


def _alpha_problems(alpha: Alpha) -> Iterator[Problem]:
    path = ("rollout", "mixture", "alpha")
    given = alpha.model_dump(exclude_none=True).keys() - {"value"}
    if given not in ({"fixed"}, {"criterion"}, {"start", "end", "steps"}):
        has = ", ".join(sorted(given)) or "nothing"
        yield Problem(
            path, f"should be a number, a criterion or {{start:, end:, steps:}}, one of the three; has {has}"
        )
    elif alpha.criterion in _AIMS and alpha.value is None:
        yield Problem(path, f"{alpha.criterion} needs a `value` to aim at")
    elif alpha.criterion not in _AIMS and alpha.value is not None:
        yield Problem((*path, "value"), f"is not used: only {', '.join(_AIMS)} aim at one; remove it")
    elif alpha.criterion == "ess" and alpha.value is not None and alpha.value > 1:
        yield Problem((*path, "value"), f"{alpha.value:g} cannot be: ess is a fraction; at most 1")


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

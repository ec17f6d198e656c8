"""The objective of a recipe, and what a step of it needs; no model is loaded for either."""

from collections.abc import Mapping

from klent.config import Recipe
from klent.training.distill import distill_term
from klent.training.objective import Objective
from klent.training.requirements import Requirements, requirements


def build_objective(recipe: Recipe) -> Objective:
    """The functions that a recipe names, bound to their settings."""
    mixture = recipe.rollout.mixture
    distill = [distill_term(mixture.distill.coef)] if mixture and mixture.distill else []
    return Objective(
        with_bonus(recipe),
        recipe.advantage,
        recipe.token_reward,
        recipe.select,
        weigh=recipe.weigh,
        more=distill,
    )


def step_requirements(recipe: Recipe) -> Requirements:
    """The forward passes of each step, worked out before anything is loaded."""
    steps = recipe.update.epochs * recipe.update.minibatches
    objective, ahead = build_objective(recipe), recipe.rollout.staleness > 0
    return requirements(objective, optimizer_steps=steps, asked=asked_streams(recipe), ahead=ahead)


def asked_streams(recipe: Recipe) -> frozenset[str]:
    """Streams that keys of a recipe ask for, beside what its terms read."""
    asked = {"distance": recipe.update.distance, "logp_old": recipe.rollout.mismatch}
    return frozenset(name for name, section in asked.items() if section is not None)


def with_bonus(recipe: Recipe) -> Mapping[str, Mapping[str, object] | None]:
    """The loss, and the entropy term that a thermostat steers where it steers one."""
    if recipe.thermostat is None or recipe.thermostat.steer != "bonus":
        return recipe.loss
    return {**recipe.loss, "entropy_loss": {"coef": 0.0}}

"""Held-out accuracy of any model, on a recipe's task."""

from pathlib import Path
from typing import Any

import torch

from klent.config import Recipe
from klent.errors import ConfigError
from klent.kit.seeds import derive_seed
from klent.measure.certainty import extra_measures
from klent.measure.evaluate import evaluate
from klent.models.load import load_policy
from klent.runs.build import build_sampler
from klent.tasks import RewardSpec, Scorer, load_task, parse_rewards


def evaluate_model(model: str, recipe: Recipe) -> dict[str, Any]:
    """Held-out accuracy of any model on a recipe's task, with its reward, sampling and seed.

    Args:
        model: alias, folder or hub id.
        recipe: where the problems come from and how they are scored; its own ``model`` is not loaded.

    Returns:
        A row as of :func:`evaluate`, step 0.

    Raises:
        ConfigError: the recipe has no ``eval`` section or no reward.
    """
    rewards = eval_rewards(recipe)
    if recipe.eval is None or rewards is None:
        missing = "eval" if recipe.eval is None else "reward"
        raise ConfigError(f"recipe {recipe.name} has no `{missing}`, so that nothing can be measured; set it")
    task = load_task(recipe.task.model_dump(), seed=recipe.seed, heldout=recipe.eval.problems)
    with Scorer(rewards, task) as scorer:
        scorer.check()
        loaded = load_policy(model, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
        loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return evaluate(
            build_sampler(loaded, recipe.rollout),
            scorer,
            task.heldout(recipe.eval.problems),
            samples=recipe.eval.samples,
            seed=derive_seed(recipe.seed, "eval"),
            step=0,
            more=extra_measures(recipe, loaded, scorer, derive_seed(recipe.seed, "eval")),
        )


def eval_rewards(recipe: Recipe) -> tuple[RewardSpec, ...] | None:
    """What tells right from wrong in evaluation: ``eval.reward``, else the recipe's own reward."""
    chosen = (recipe.eval.reward if recipe.eval else None) or recipe.reward
    return parse_rewards([reward.model_dump() for reward in chosen], Path()) if chosen else None

"""Held-out data under any model, where a run replays data and nothing is rewarded: the loss, or pairs in order."""

from collections.abc import Callable

from klent.config import Recipe
from klent.errors import ConfigError, DataError
from klent.measure.evaluate import NO_PROBLEMS
from klent.runs.build import build_parts
from klent.runs.exams import build_exams
from klent.runs.parts import Around
from klent.tasks import load_task


def is_replayed(recipe: Recipe) -> bool:
    """Whether an evaluation measures what a language model says of given texts, and samples nothing."""
    policy, of_texts = recipe.policy, not recipe.rollout.sampled and not recipe.task.logged
    return policy.language and not policy.scores and of_texts and not recipe.judged


def evaluate_replayed(model: str, recipe: Recipe, note: Callable[[str], None]) -> dict[str, object]:
    """A row of ``eval.jsonl`` at step 0: ``loss`` and ``perplexity`` of completions, ``preference/...`` of pairs.

    Args:
        model: alias, folder or hub id.
        recipe: where the data are; pairs are compared with its ``reference``, by default its ``model``.
        note: told what a user should know.

    Raises:
        ConfigError: the recipe has no ``eval`` section, or nothing of its data can be measured without a reward.
        DataError: nothing is held out.
    """
    if recipe.eval is None:
        raise ConfigError(f"recipe {recipe.name} has eval: null; set the number of rows: eval.problems=64")
    task = load_task(
        recipe.task, seed=recipe.seed, heldout=recipe.eval.problems, needed=recipe.task.completions
    )
    if not task.heldout(recipe.eval.problems):  # before a model is loaded
        raise DataError(NO_PROBLEMS)
    start = recipe.reference or recipe.model
    measured = recipe.model_copy(update={"model": model, "reference": start, "lora": None, "critic": None})
    parts = build_parts(measured, Around(progress=lambda done, of: None, note=note))
    task.fit(parts.engine.check, parts.engine.check)  # the same rows as in training
    exams = build_exams(measured, parts, task=task, examined=task, judge=None, note=note)
    if not exams:
        raise ConfigError(
            f"recipe {recipe.name}: without a reward nothing can be measured on its data; set `reward`"
        )
    return {key: value for exam in exams for key, value in exam(0, None).items()}

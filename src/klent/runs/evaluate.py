"""Evaluation of a whole recipe: its held-out problems, reward and sampling, on any model."""

from collections.abc import Callable, Sequence

from klent.config import Eval, Recipe, Reward
from klent.errors import ConfigError, DataError
from klent.kit.seeds import derive_seed
from klent.measure.certainty import extra_measures
from klent.measure.evaluate import NO_PROBLEMS, evaluate
from klent.models.load import LoadedModel, load_policy
from klent.rollout.engine import Engine
from klent.runs.engines import RolloutSection, build_sampler
from klent.runs.judges import open_judges
from klent.runs.reward_models import evaluate_scores
from klent.streams.prompt import Prompt
from klent.tasks import Scorer, load_task


def eval_rewards(recipe: Recipe) -> tuple[Reward, ...] | None:
    """What tells right from wrong in evaluation: ``eval.reward``, else the recipe's own reward."""
    return (recipe.eval.reward if recipe.eval else None) or recipe.reward


def sampler_at(loaded: LoadedModel, rollout: RolloutSection) -> Callable[[float], Engine]:
    """Temperature -> the engine that samples as ``rollout`` says, but at that temperature."""
    plain = rollout.for_evaluation()
    return lambda temperature: build_sampler(loaded, plain.model_copy(update={"temperature": temperature}))


def evaluate_policy(
    loaded: LoadedModel,
    rollout: RolloutSection,
    settings: Eval,
    *,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    seed: int,
    step: int = 0,
    start: Sequence[str | None] | None = None,
    engine: Engine | None = None,
) -> dict[str, object]:
    """One evaluation of a loaded model: a row of ``eval.jsonl``.

    Args:
        loaded: the model.
        rollout: how to sample.
        settings: how many problems and samples, and which extra measures.
        scorer: what tells right from wrong.
        prompts: the problems.
        seed: of the run; the sampling's seed is derived from it.
        step: the training step that is evaluated, 0 before training.
        start: the ``vote`` of the evaluation before training; None = this is that evaluation.
        engine: samples from ``loaded``, if the caller already has one.
    """
    seed = derive_seed(seed, "eval")
    at_temperature = sampler_at(loaded, rollout)
    row = evaluate(
        engine or build_sampler(loaded, rollout),
        scorer,
        prompts,
        samples=settings.samples,
        seed=seed,
        step=step,
        more=extra_measures(settings, loaded.model, scorer, seed, sampler_at=at_temperature, start=start),
    )
    return {**row, "temperature": rollout.temperature}


def evaluate_model(
    model: str, recipe: Recipe, note: Callable[[str], None] = lambda text: None
) -> dict[str, object]:
    """Held-out reward, and accuracy, of any model on a recipe's task, with its reward, sampling and seed.

    Args:
        model: alias, folder or hub id.
        recipe: where the problems come from and how they are scored; its own ``model`` is not loaded.
        note: told of what is strange in what a reward says of the first problem.

    Returns:
        A row as of :func:`klent.measure.evaluate.evaluate`, step 0.

    Raises:
        ConfigError: the recipe has no ``eval`` section or no reward.
    """
    rewards = eval_rewards(recipe)
    if recipe.eval is not None and recipe.policy.scores:
        return evaluate_scores(model, recipe)
    if recipe.eval is None or rewards is None:
        missing = "eval" if recipe.eval is None else "reward"
        raise ConfigError(
            f"recipe {recipe.name} has no `{missing}`: there is nothing to measure. Set `{missing}`."
        )
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    if not task.heldout(recipe.eval.problems):  # before a model is loaded
        raise DataError(NO_PROBLEMS)
    with Scorer(rewards, task, judge=open_judges(recipe, sampler=model)) as scorer:
        for tried in scorer.check():
            if tried.doubt:
                note(tried.text)
        loaded = load_on_device(model, recipe)
        task.fit(None, build_sampler(loaded, recipe.rollout).check)  # the same problems as in training
        prompts = task.heldout(recipe.eval.problems)
        return evaluate_policy(
            loaded, recipe.rollout, recipe.eval, scorer=scorer, prompts=prompts, seed=recipe.seed
        )


def load_on_device(model: str, recipe: Recipe) -> LoadedModel:
    """A model in the recipe's precision, on the accelerator if there is one."""
    return load_policy(
        model,
        dtype=recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        device="auto",
    )

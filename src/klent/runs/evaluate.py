"""Evaluation of a whole recipe: its held-out problems, reward and sampling, on any model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from klent.config import Eval, Recipe, Reward
from klent.errors import ConfigError, DataError
from klent.kit.seeds import derive_seed
from klent.measure.certainty import extra_measures
from klent.measure.evaluate import NO_PROBLEMS, evaluate
from klent.measure.preferences import Scores
from klent.models.load import LoadedModel, load_policy
from klent.rollout.engine import Engine
from klent.runs.denoisers import open_sampler
from klent.runs.device import viewing
from klent.runs.engines import RolloutSection, build_sampler
from klent.runs.judges import open_judges
from klent.runs.reward_models import evaluate_scores
from klent.runs.robots import evaluate_robot
from klent.runs.targets import open_model
from klent.streams.batch import Batch
from klent.streams.prompt import Prompt
from klent.tasks import Scorer, Task, load_task
from klent.tasks.callables import Function
from klent.tasks.first_call import Tried
from klent.tasks.pool import EnvironmentPool
from klent.tasks.returns import Judge, Returns
from klent.tasks.starts import EnvironmentTask
from klent.training.pairs import PairTerm
from klent.training.reference import Reference
from klent.training.update import Updater


def eval_rewards(recipe: Recipe) -> tuple[Reward, ...] | None:
    """What tells right from wrong in evaluation: ``eval.reward``, else the recipe's own reward."""
    return (recipe.eval.reward if recipe.eval else None) or recipe.reward


def examined_task(recipe: Recipe, task: Task | None = None) -> Task:
    """Whose held-out problems are answered: the starts of ``eval.play`` where there is such a game, else the task's.

    Args:
        recipe: with an ``eval`` section, or a task.
        task: the recipe's, where it has been loaded.
    """
    problems = recipe.eval.problems if recipe.eval else 0
    section = recipe.game
    if recipe.eval is None or recipe.eval.play is None or section is None:
        return task or load_task(recipe.task, seed=recipe.seed, heldout=problems)
    seed = recipe.seed if section.seed is None else section.seed
    return EnvironmentTask(section, seed=seed, heldout=problems, trained=False)


def sampler_at(
    loaded: LoadedModel, rollout: RolloutSection, environments: EnvironmentPool | None = None
) -> Callable[[float], Engine]:
    """Temperature -> the engine that samples as ``rollout`` says, but at that temperature."""
    plain = rollout.for_evaluation()
    return lambda temperature: build_sampler(
        loaded, plain.model_copy(update={"temperature": temperature}), environments=environments
    )


@contextmanager
def open_judge(
    recipe: Recipe,
    task: Task,
    functions: Mapping[str, Function] | None = None,
    log: Path | None = None,
    sampler: str | None = None,
) -> Iterator[tuple[Judge, list[Tried]]]:
    """What tells right from wrong in evaluation, and what each of its parts said of the first problem.

    That is ``eval.reward`` where there is one, else what training is rewarded by, without a discount.

    Raises:
        ConfigError: there is none.
    """
    rewards = eval_rewards(recipe)
    if rewards is None and task.environments is None:
        raise ConfigError("there is no reward to evaluate with; set `reward` or `eval.reward`")
    with ExitStack() as stack:
        if task.environments is not None:
            stack.callback(task.environments.close)
        judges = open_judges(recipe, sampler=sampler, log=log)
        scorer = stack.enter_context(Scorer(rewards, task, log, functions, judges)) if rewards else None
        tried = scorer.check() if scorer else []
        if scorer is not None and (task.environments is None or (recipe.eval and recipe.eval.reward)):
            yield scorer, tried
        else:
            yield Returns(scorer), tried


def evaluate_policy(
    loaded: LoadedModel,
    rollout: RolloutSection,
    settings: Eval,
    *,
    scorer: Judge,
    prompts: Sequence[Prompt],
    seed: int,
    step: int = 0,
    start: Sequence[str | None] | None = None,
    engine: Engine | None = None,
    environments: EnvironmentPool | None = None,
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
        environments: what the problems are the openings of; None where they are answered once.
    """
    seed = derive_seed(seed, "eval")
    at_temperature = sampler_at(loaded, rollout, environments)
    row = evaluate(
        engine or build_sampler(loaded, rollout, environments=environments),
        scorer,
        prompts,
        samples=settings.samples,
        seed=seed,
        step=step,
        more=extra_measures(settings, loaded.model, scorer, seed, sampler_at=at_temperature, start=start),
    )
    return {**row, "temperature": rollout.temperature}


def pair_scores(updater: Updater, reference: Reference | None) -> Scores:
    """What the loss of pairs compares of each completion, under the policy as it stands.

    Args:
        updater: trains the policy by a loss of pairs.
        reference: gives ``logp_ref``; None where the loss reads none.
    """
    (term, *_) = [term for term in updater.objective.terms if isinstance(term, PairTerm)]

    @torch.no_grad()
    def scores(batch: Batch) -> Tensor:
        rows = range(len(batch))
        logp = updater.measure(batch, rows).logp
        logp_ref = None if reference is None else reference.logp(batch)
        return term.scores(batch.streams.with_(logp=logp, logp_ref=logp_ref))

    return scores


UNREWARDED = {"reward_model": evaluate_scores, "gaussian": evaluate_robot}
"""Who measures the kinds of policies that no reward judges."""


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
    if recipe.eval is not None and recipe.policy.kind in UNREWARDED:
        return UNREWARDED[recipe.policy.kind](model, recipe)
    if recipe.eval is None or not recipe.judged:
        missing = "eval" if recipe.eval is None else "reward"
        game = ", or the game that the log is of: eval.play.env=NAME" if recipe.task.logged else ""
        raise ConfigError(
            f"recipe {recipe.name} has no `{missing}`: there is nothing to measure. Set `{missing}`{game}."
        )
    task = examined_task(recipe)
    if not task.heldout(recipe.eval.problems):  # before a model is loaded
        raise DataError(NO_PROBLEMS)
    with open_judge(recipe, task, sampler=model) as (judge, tried):
        for one in tried:
            if one.doubt:
                note(one.text)
        if not recipe.policy.language:
            vectors = open_sampler(model, recipe)
            task.fit(None, vectors.check)
            settings, seed = recipe.eval, derive_seed(recipe.seed, "eval")
            prompts = task.heldout(settings.problems)
            return evaluate(vectors, judge, prompts, samples=settings.samples, seed=seed, step=0)
        loaded, player = open_model(model, recipe)
        sampler = build_sampler(loaded, recipe.text_rollout, environments=task.environments, player=player)
        task.fit(None, sampler.check)  # the same problems as in training
        return evaluate_policy(
            loaded,
            recipe.text_rollout,
            recipe.eval,
            scorer=judge,
            prompts=task.heldout(recipe.eval.problems),
            seed=recipe.seed,
            engine=sampler,
            environments=task.environments,
        )


def load_on_device(model: str, recipe: Recipe) -> LoadedModel:
    """A model in the recipe's precision, on the accelerator if there is one."""
    return load_policy(
        model,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        **viewing(recipe.device, recipe.precision),
    )

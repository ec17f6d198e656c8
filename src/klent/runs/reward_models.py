"""A reward model as a recipe describes it: loaded, trained, measured on held-out pairs, centred, saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from klent.config import DataSettings, Eval, Recipe, RewardModelSettings
from klent.errors import DataError, RunError
from klent.kit.statistics import mean
from klent.measure.calibration import calibration
from klent.measure.evaluate import NO_PROBLEMS
from klent.measure.preferences import evaluate_pairs
from klent.models.load import LoadedModel, load_policy
from klent.models.save import save_model
from klent.policies.causal_lm.judge import RewardJudge
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.reward_model import RewardModel, ScoringModel, require_scores
from klent.rollout.dataset_engine import DatasetEngine
from klent.runs.device import placement, viewing
from klent.runs.objective import build_objective
from klent.runs.parts import Around, Note, Parts
from klent.runs.updaters import build_updater
from klent.streams.batch import make_batch
from klent.streams.prompt import Prompt
from klent.tasks import DataTask, Task, load_task

MOST = 512  # texts that a mean is taken over


def load_scoring(recipe: Recipe) -> LoadedModel:
    """The reward model that a recipe starts from; a causal language model becomes one."""
    return load_policy(
        recipe.model,
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        gradient_checkpointing=recipe.update.gradient_checkpointing,
        seed=recipe.seed,
        **placement(recipe.device, recipe.precision),
        scores=True,
    )


def build_reward_model(recipe: Recipe, loaded: LoadedModel, note: Note) -> RewardModel:
    """The policy over a loaded reward model, checked against transformers' own scores.

    Raises:
        RunError: packing is asked for, and the model does not allow it.
    """
    policy = RewardModel(cast(ScoringModel, loaded.model))
    require_scores(policy)
    window = getattr(loaded.model.config.get_text_config(), "sliding_window", None)
    longest = recipe.rollout.max_tokens + (window or 0)  # of a prompt of unknown length, the context is safe
    shared = recipe.update.packing != "off" and takes_shared_prompt(policy, longest=longest)
    if recipe.update.packing == "on" and not shared:
        raise RunError(
            f"update.packing=on, but {recipe.model} does not give the same scores when a pair shares its prompt in "
            "one row: its attention cannot use such a mask. Use update.packing=auto or off."
        )
    if recipe.update.packing in ("auto", "full") and not shared:
        note("the model's attention cannot share a prompt: each answer gets its own row (exact, slower)")
    elif recipe.update.packing == "full":
        note("update.packing=full works like `on` for a reward model: each row has one prompt")
    policy.packing = Packing(shared, recipe.update.tokens_per_microbatch)
    return policy


def build_scoring_parts(recipe: Recipe, around: Around) -> Parts:
    """The parts of a run that trains a reward model: it replays pairs, and samples nothing."""
    loaded = load_scoring(recipe)
    policy = build_reward_model(recipe, loaded, around.note)
    columns = recipe.task.completions
    engine = DatasetEngine(loaded, max_tokens=recipe.rollout.max_tokens, columns=columns, margins=True)
    filler = loaded.tokenizer.pad_token_id
    return Parts(
        model=loaded.model,
        decoder=loaded.tokenizer,
        loaded=loaded,
        engine=engine,
        sampler=engine,
        policy=policy,
        updater=build_updater(recipe, policy, build_objective(recipe), around.world, filler=filler),
        compared=None,
        organs=[],
        save=lambda task, folder: centre_and_save(policy, loaded, engine, recipe, task, folder),
        compare=lambda prompts, step: evaluate_pairs(
            engine, policy.scores, prompts, step=step, more=calibration
        ),
    )


def evaluate_scores(model: str, recipe: Recipe) -> dict[str, object]:
    """Accuracy and calibration of any reward model on a recipe's held-out pairs: a row of ``eval.jsonl``, step 0.

    Raises:
        ModelError: the folder is no reward model.
        DataError: nothing is held out.
    """
    settings, columns = recipe.eval or Eval(), recipe.task.completions
    task = load_task(recipe.task, seed=recipe.seed, heldout=settings.problems, needed=columns)
    if not task.heldout(settings.problems):  # before a model is loaded
        raise DataError(NO_PROBLEMS)
    judge = RewardJudge.load(
        model,
        **viewing(recipe.device, recipe.precision),
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        tokens_per_microbatch=recipe.update.tokens_per_microbatch,
    )
    engine = DatasetEngine(judge.loaded, max_tokens=recipe.rollout.max_tokens, columns=columns)
    task.fit(None, engine.check)  # the same pairs as in training
    prompts = task.heldout(settings.problems)
    return evaluate_pairs(engine, judge.model.scores, prompts, step=0, more=calibration)


def centre_and_save(
    policy: RewardModel, loaded: LoadedModel, engine: DatasetEngine, recipe: Recipe, task: Task, folder: Path
) -> None:
    """Write the model's folder, its scores moved so that those of a few texts are 0 on average."""
    policy.centre(_mean_score(policy, loaded, engine, recipe, task))
    save_model(loaded.model, loaded.tokenizer, folder)


def _mean_score(
    policy: RewardModel, loaded: LoadedModel, engine: DatasetEngine, recipe: Recipe, task: Task
) -> float:
    """Of the answers of ``policy.centre_on``; else of both answers of the held-out pairs, or of those trained on."""
    file = cast(RewardModelSettings, recipe.policy).centre_on
    if file is None:
        prompts = task.heldout(MOST // 2) or [task.train(index) for index in range(MOST // 8)]
        return _mean_of(policy, engine, prompts)
    answers = DataTask(DataSettings(data=file), needed=("completion",))
    reader = DatasetEngine(loaded, max_tokens=recipe.rollout.max_tokens)
    return _mean_of(policy, reader, [answers.train(index) for index in range(min(MOST, len(answers)))])


def _mean_of(policy: RewardModel, engine: DatasetEngine, prompts: Sequence[Prompt]) -> float:
    each = len(engine.columns)
    batch = make_batch(engine.generate(prompts, group_size=each, seed=0), None, group_size=each)
    scores = policy.scores(batch)
    if not scores.isfinite().all():
        raise DataError(
            "a score is not finite, so the scores cannot be centred: the model has diverged. Lower optimizer.lr"
        )
    return mean(scores.tolist())

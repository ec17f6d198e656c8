"""A recipe's moving parts, built once, and their loop.

Here and in klent.config a whole recipe is known; every part takes the sections that it reads.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from klent.config import Recipe, dump_recipe
from klent.control.limits import Guard
from klent.control.organ import Organ
from klent.control.rounding import RoundedAway
from klent.control.stale import StaleData
from klent.control.witness import Witness
from klent.errors import ConfigError
from klent.kit.world import World
from klent.measure.roofline import Floor
from klent.models.exact import close
from klent.rollout.ahead import Ahead
from klent.rollout.shared_engine import SharedEngine
from klent.rollout.source import TaskSource
from klent.runs.console import TrainConsole
from klent.runs.denoisers import build_denoiser_parts
from klent.runs.evaluation import EvalRow, Evaluations, Exam
from klent.runs.exams import build_exams
from klent.runs.folder import RunFolder
from klent.runs.language import build_language_parts
from klent.runs.loop import Loop
from klent.runs.parts import Around, Builder, Parts
from klent.runs.recorder import Recorder
from klent.runs.reward_models import build_scoring_parts
from klent.runs.robots import build_robot_parts
from klent.runs.state import RunState
from klent.runs.trackers import Trackers
from klent.tasks import Task
from klent.tasks.returns import Judge

BUILDERS: dict[str, Builder] = {
    "causal_lm": build_language_parts,
    "reward_model": build_scoring_parts,
    "denoiser": build_denoiser_parts,
    "gaussian": build_robot_parts,
}
"""Who builds the parts of each kind of policy."""


def build_parts(recipe: Recipe, around: Around) -> Parts:
    """Load the model and build everything that a step needs of it."""
    _refuse_shared_server(recipe, around.world)
    return BUILDERS[recipe.policy.kind](recipe, around)


def _refuse_shared_server(recipe: Recipe, world: World) -> None:
    if recipe.rollout.engine == "vllm" and recipe.rollout.server is not None and world.size > 1:
        raise ConfigError(
            f"rollout.server is one engine, and {world.size} ranks share the run: each would hand it weights while "
            "another samples. Start one process, or use vLLM in each process (remove rollout.server)"
        )


def build_loop(
    recipe: Recipe,
    parts: Parts,
    folder: RunFolder,
    task: Task,
    examined: Task,
    scorer: Judge | None,
    judge: Judge | None,
    console: TrainConsole,
    *,
    evaluate: bool = True,
    leader: Path | None = None,
) -> Loop:
    """The loop over a recipe's parts.

    Args:
        recipe: what to run.
        parts: as of :func:`build_parts`.
        folder: the run's.
        task: gives the problems.
        examined: gives the held-out problems that are answered.
        scorer: rewards completions.
        judge: tells right from wrong on held-out problems; None = none is answered.
        console: shows the run.
        evaluate: False = nothing held out is measured.
        leader: the run's folder, where this rank follows the one that writes it.
    """
    rollout = recipe.rollout
    parts = _shared(parts, sampled=rollout.sampled)
    trackers = Trackers(
        recipe.track if leader is None else (), folder.path, title=recipe.name, recipe=dump_recipe(recipe)
    )
    organs = _organs(recipe, parts, folder, task, console)
    exams = []
    if evaluate:
        asked = build_exams(recipe, parts, task=task, examined=examined, judge=judge, note=console.warn)
        exams = [_with_all_weights(parts, exam) for exam in asked]
    settings = recipe.eval
    evaluations = Evaluations(
        folder,
        exams,
        every=settings.every if settings else 0,
        early_stop=settings.early_stop if settings else None,
        keep_best=lambda: save(parts, task, folder.best, writes=leader is None),
        show=console.eval,
    )
    source = TaskSource(
        task,
        parts.engine,
        scorer if rollout.sampled else None,
        prompts_per_step=recipe.prompts_per_step,
        group_size=recipe.group_size,
        seed=recipe.seed,
    )
    ahead = _ahead(source, recipe, parts, organs) if rollout.staleness else None
    return Loop(
        source=ahead or source,
        engine=ahead or parts.engine,
        updater=parts.updater,
        reference=parts.compared,
        organs=organs,
        evaluations=evaluations,
        recorder=Recorder(folder, parts.decoder, trackers, console),
        state=RunState(
            folder,
            parts.updater,
            [*organs, evaluations],
            keep=recipe.checkpoint.keep,
            on_damage=console.warn,
            run=leader,
        ),
        console=console,
        floor=Floor.of(parts.loaded.model) if parts.loaded is not None and rollout.sampled else None,
        steps=recipe.steps,
        checkpoint_every=recipe.checkpoint.every,
        seed=recipe.seed,
    )


def _with_all_weights(parts: Parts, exam: Exam) -> Exam:
    """The exam where this rank has all weights: some of what it measures reads the model itself."""

    def run(step: int, votes: Sequence[str | None] | None) -> EvalRow:
        with parts.gathered():
            return exam(step, votes)

    return run


def save(parts: Parts, task: Task, folder: Path, *, writes: bool) -> None:
    """Write the model as a folder; a rank that does not write it gives the others its part of the weights."""
    with parts.gathered():
        if writes:
            parts.save(task, folder)


def _shared(parts: Parts, *, sampled: bool) -> Parts:
    """The same parts, where ranks share the run with engines whose work is shared."""
    world = parts.updater.world
    if world.size == 1 or not sampled:
        return parts
    engine, sampler = (SharedEngine(one, world, parts.gathered) for one in (parts.engine, parts.sampler))
    return replace(parts, engine=engine, sampler=sampler)


def _organs(
    recipe: Recipe, parts: Parts, folder: RunFolder, task: Task, console: TrainConsole
) -> list[Organ]:
    """Those of the parts, and those that every run of their kind has."""

    def checkpoints() -> list[str]:
        return sorted(path.name for path in folder.checkpoints.glob("[0-9]*"))

    updater = parts.updater
    rounded = RoundedAway(updater.optimizer, console.warn, updater.world if updater.sharded else None)
    organs = [*parts.organs, rounded, Guard(recipe.limits, folder.path, checkpoints, console.warn)]
    if parts.alone is not None and parts.loaded is not None:
        agree = partial(close, dtype=parts.loaded.model.dtype)
        organs.append(Witness(parts.updater.measure, parts.alone, agree, console.warn))
    if parts.values is not None:
        organs.append(parts.values(task))
    return organs


def _ahead(source: TaskSource, recipe: Recipe, parts: Parts, organs: list[Organ]) -> Ahead:
    """Sampling that runs ahead, and the organ that holds it."""
    if parts.updater.world.size > 1:
        raise ConfigError(
            f"rollout.staleness is {recipe.rollout.staleness}, and {parts.updater.world.size} ranks share the run: "
            "ranks cannot exchange completions that a thread samples ahead. Start one process, or set "
            "rollout.staleness: 0"
        )
    ahead = Ahead(source, staleness=recipe.rollout.staleness, last=recipe.steps)
    organs.insert(0, StaleData(ahead, weighed=recipe.rollout.mismatch is not None))
    return ahead

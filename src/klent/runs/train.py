"""Run a recipe from its first step to its last: the composition root of a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from klent.config import Recipe, Reward, dump_recipe, load_recipe
from klent.control.limits import saved_state
from klent.control.mixing import check_alpha
from klent.errors import ConfigError, DivergenceError, RunError
from klent.io.files import write_atomic
from klent.io.folders import replace_folder
from klent.kit.text import plural
from klent.kit.world import World
from klent.models.chat import reads_clock, unheard_tools
from klent.report import write_report
from klent.rollout.mixture_engine import MixtureEngine
from klent.runs.build import build_loop, build_parts, save
from klent.runs.checkpoint import peek_newest
from klent.runs.console import TrainConsole
from klent.runs.engines import turn_engine
from klent.runs.evaluate import eval_rewards, examined_task
from klent.runs.fingerprint import (
    Fingerprint,
    defaults_of,
    free_changes,
    refuse_other_inputs,
    take_fingerprint,
)
from klent.runs.folder import RunFolder
from klent.runs.judges import open_judges
from klent.runs.loop import Loop
from klent.runs.parts import Around, Parts
from klent.runs.plan import describe_plan, title_of
from klent.runs.ranks import SharedJudge, copy_logs, followers_folder, leads, meet, refuse_idle
from klent.runs.record import finish_record, start_record
from klent.tasks import DataTask, Scorer, Task, load_task
from klent.tasks.callables import Function
from klent.tasks.first_call import Tried
from klent.tasks.returns import Judge, Returns
from klent.tasks.starts import EnvironmentTask
from klent.training.ranks import from_first, joined


def train(
    recipe: Recipe,
    run: Path,
    *,
    command: str,
    resume: bool = False,
    evaluate: bool = True,
    console: TrainConsole | None = None,
    rewards: Mapping[str, Function] | None = None,
) -> Path:
    """Run a recipe, or go on with a run, until its last step; everything it makes is in the run folder.

    Args:
        recipe: what to run; of a resumed run, its own ``config.yaml``, but for what may change in a run
            (:data:`klent.runs.fingerprint.FREE`).
        run: the run folder.
        command: the command line that repeats the run, for the report.
        resume: go on from the newest whole checkpoint of an existing folder.
        evaluate: False = the problems of ``eval`` are kept out of training, and not measured.
        console: where to say what happens; prints to standard output by default.
        rewards: by NAME the function of each reward ``python:NAME``, which no file holds.

    Returns:
        The run folder.

    Raises:
        ConfigError: a resumed run's recipe, data or model are not those of its checkpoint.
        RunError: the folder is in use, or exists and ``resume`` is False; every completion was unscorable, or
            no gradient finite, for as many steps in a row as ``limits`` allows. What was reached is saved.
    """
    with joined(recipe.distributed) as world:
        refuse_idle(recipe.prompts_per_step, world)
        console = (console or TrainConsole()) if leads(world) else TrainConsole(Console(quiet=True))
        undated, recipe = recipe, _dated(recipe, run / "config.yaml", world)
        task = load_task(
            recipe.task,
            seed=recipe.seed,
            heldout=recipe.eval.problems if recipe.eval else 0,
            needed=() if recipe.rollout.sampled else recipe.task.completions,
        )
        examined = examined_task(recipe, task)
        check_alpha(recipe.rollout.mixture, task)
        fingerprint = _fingerprint(undated)
        with _claimed(run, resume, world) as folder, ExitStack() as stack:
            changes = _changes(recipe, folder, fingerprint, console) if resume and leads(world) else []
            scorers = _scorers(recipe, task, examined, folder, rewards, world)
            scorer, judge, tried = stack.enter_context(scorers)
            for doubt in (one.text for one in tried if one.doubt):
                console.warn(doubt)
            around = Around(
                progress=lambda done, of: console.phase("rollout", done, of),
                note=console.warn,
                environments=task.environments,
                played=examined.environments,
                world=world,
            )
            parts = build_parts(recipe, around)
            apart = examined is not task
            answered = judge is not None and not recipe.task.paired and not apart  # else they are replayed
            held_out = parts.sampler.check if answered else parts.engine.check
            left_out = task.fit(parts.engine.check, held_out)
            _tell_of_tools(parts, task, console.warn)
            if left_out := left_out + (examined.fit(None, parts.sampler.check) if apart else 0):
                looked_at = "" if isinstance(task, DataTask) else " of those tried"
                console.warn(f"task.too_long=drop: {plural(left_out, 'prompt')}{looked_at} left out")
            leader = None if leads(world) else run
            build = partial(build_loop, recipe, parts, folder, task, examined, scorer, judge, console)
            loop = build(evaluate=evaluate, leader=leader)
            loop.state.fingerprint = fingerprint.state()
            done = _restored(loop, run, folder, world)
            if leads(world):
                recorded = recipe if _reads_clock(parts) else undated
                rewrite = not resume or load_recipe(folder.config) != recorded
                if rewrite:  # all that could be refused has been: from here on the folder is a run
                    write_atomic(folder.config, dump_recipe(recorded))
                begun = partial(start_record, run, command=command, changed=changes, code=fingerprint.code)
                begun(here=rewrite, on_damage=console.warn)
            try:
                plan = [*describe_plan(recipe), *(f"tried: {one.text}" for one in tried)]
                console.start(title_of(recipe), plan, steps=recipe.steps, done=done)
                loop.fit()
                console.stopped_by = None if loop.finished else loop.stopped_by
                _finish(loop, folder, parts, task, console, world)
            except DivergenceError as error:  # what it has become is not saved: it would fail again
                kept = sorted(path.name for path in folder.checkpoints.glob("[0-9]*"))
                raise RunError(f"{error}. Lower it, and start again. {saved_state(kept)}") from error
            finally:
                console.close()
        return run


def _dated(recipe: Recipe, config: Path, world: World) -> Recipe:
    """The recipe with the day of the run's first start, so that prompts read the same on every day and rank."""

    def day() -> bytes:
        recorded = load_recipe(config).task.clock if config.is_file() else None
        return (recorded or datetime.now(UTC).date()).isoformat().encode()

    return recipe.dated(date.fromisoformat(from_first(world, day).decode()))


def _fingerprint(recipe: Recipe) -> Fingerprint:
    """What a checkpoint depends on; the clock is written down only where a template reads it."""
    values = recipe.model_dump(mode="json")
    values["task"].pop("clock", None)
    return take_fingerprint(values)


def _tell_of_tools(parts: Parts, task: Task, warn: Callable[[str], None]) -> None:
    """Warn where the first prompt has tools, and nothing that the model reads is of them."""
    loaded, first = parts.loaded, task.train(0)
    if loaded is not None and unheard_tools(loaded.tokenizer, first.prompt, first.template):
        warn(
            f"the chat template of {loaded.source} does not write the tools, so the model never sees them. Use a "
            "model whose template does, or describe them in the prompt or in task.system"
        )


def _reads_clock(parts: Parts) -> bool:
    """Whether what is asked depends on the day; only then is it part of the record."""
    engine = turn_engine(parts.engine)
    models = [
        *([parts.loaded] if parts.loaded else []),
        *([engine.target.loaded] if isinstance(engine, MixtureEngine) else []),
    ]
    return any(reads_clock(loaded.tokenizer) for loaded in models)


@contextmanager
def _claimed(run: Path, resume: bool, world: World) -> Iterator[RunFolder]:
    """The run's folder, or a follower's own; one that was made for a run that is then refused is removed."""
    if not leads(world):
        meet(world)
        with followers_folder(run) as folder:
            yield folder
        return
    with RunFolder.open(run) if resume else RunFolder.create(run) as folder:
        try:
            meet(world)
            yield folder
        except BaseException:
            folder.abandon()
            raise


def _changes(
    recipe: Recipe, folder: RunFolder, fingerprint: Fingerprint, console: TrainConsole
) -> list[dict[str, object]]:
    """What is not as it was at the newest checkpoint, for the record.

    Raises:
        ConfigError: something that may not change did.
    """
    newest = peek_newest(folder.path)
    if newest is None:  # the run begins again, and may be another
        return []
    step, state = newest
    if recipe.steps < step:
        raise ConfigError(
            f"{folder.path} cannot go on: steps is {recipe.steps}, and {step} are done. Set the total, or how many "
            f"to add: klent resume {folder.path} steps=+{max(recipe.steps, 1)}"
        )
    before = state.get("fingerprint")
    if not isinstance(before, dict) or not before:
        console.warn(
            f"checkpoints/{step:06d} was written by an earlier klent and has no fingerprint, so whether recipe, data "
            "and model are unchanged is not checked"
        )
        return []
    refuse_other_inputs(folder.path, step, before, fingerprint, defaults_of(recipe))
    changes = free_changes(before, fingerprint)
    for change in changes:
        console.warn(f"changed after step {step}: {change}; the rest of the run uses the new value")
    return [{"step": step, **asdict(change)} for change in changes]


@contextmanager
def _scorers(
    recipe: Recipe,
    task: Task,
    examined: Task,
    folder: RunFolder,
    functions: Mapping[str, Function] | None,
    world: World,
) -> Iterator[tuple[Judge | None, Judge | None, list[Tried]]]:
    """What rewards completions, what judges held-out answers (the same unless ``eval.reward`` says), and what
    each of their rewards, or the environment, said of the first problem."""

    def scorer_of(rewards: Sequence[Reward] | None) -> Scorer | None:
        judge_of = open_judges(recipe, log=folder.rewards_log)
        return Scorer(rewards, examined, folder.rewards_log, functions, judge_of) if rewards else None

    scorer = scorer_of(recipe.reward)
    apart = recipe.eval is not None and recipe.eval.reward is not None
    own = scorer_of(eval_rewards(recipe)) if apart else scorer
    scorers = [one for one in dict.fromkeys((scorer, own)) if one is not None]
    rewards: Judge | None = scorer
    judge: Judge | None = own
    tried = []
    if isinstance(examined, EnvironmentTask):
        examined.log_to(folder.rewards_log)
        tried = [examined.check()] if leads(world) else []
        rewards = examined.returns(scorer) if examined is task else scorer
        judge = own if apart else Returns(scorer)
    try:
        if leads(world):
            tried += [tried for one in scorers for tried in one.check()]
        rewards, judge = (one and SharedJudge(one, world) for one in (rewards, judge))
        yield rewards, judge, tried
    finally:
        for one in scorers:
            one.close()
        if examined.environments is not None:
            examined.environments.close()


def _restored(loop: Loop, run: Path, folder: RunFolder, world: World) -> int:
    """Take back the newest checkpoint; the steps done. Followers read what the first rank has put in order."""
    if not leads(world):
        meet(world)
        copy_logs(run, folder)
        return loop.restore()
    done = loop.restore()
    meet(world)
    return done


def _finish(
    loop: Loop, folder: RunFolder, parts: Parts, task: Task, console: TrainConsole, world: World
) -> None:
    """``final/``, the record and the report."""
    best = loop.evaluations.best(loop.done)
    if loop.finished:
        if from_first(world, lambda: b"kept" if folder.best.is_dir() else b""):
            if leads(world):
                replace_folder(folder.best, folder.final)
        elif best == loop.done:
            save(parts, task, folder.final, writes=leads(world))
    loop.recorder.close()
    for organ in loop.organs:
        organ.close()
    if not leads(world):
        return
    finish_record(folder.path, parts.model)
    write_report(folder.path)
    before, after = loop.evaluations.row_of(0), loop.evaluations.row_of(best)
    console.finish(folder.path, before, after, early=loop.evaluations.over)

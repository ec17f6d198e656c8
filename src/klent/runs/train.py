"""Run a recipe from its first step to its last: the composition root of a run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from klent.config import Recipe, Reward, dump_recipe
from klent.control.limits import saved_state
from klent.control.mixing import check_alpha
from klent.errors import DivergenceError, RunError
from klent.io.files import write_atomic
from klent.io.folders import replace_folder
from klent.models.load import LoadedModel
from klent.models.save import save_model
from klent.report import write_report
from klent.runs.build import build_loop, build_parts
from klent.runs.console import TrainConsole
from klent.runs.evaluate import eval_rewards
from klent.runs.folder import RunFolder
from klent.runs.loop import Loop
from klent.runs.plan import describe_plan, title_of
from klent.runs.record import finish_record, start_record
from klent.tasks import Scorer, Task, load_task
from klent.tasks.callables import Function


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
        recipe: what to run; of a resumed run, its own ``config.yaml``.
        run: the run folder.
        command: the command line that repeats the run, for the report.
        resume: go on from the newest whole checkpoint of an existing folder.
        evaluate: False = the problems of ``eval`` are kept out of training, and not measured.
        console: where to say what happens; prints to standard output by default.
        rewards: by NAME the function of each reward ``python:NAME``, which no file holds.

    Returns:
        The run folder.

    Raises:
        RunError: the folder is in use, or exists and ``resume`` is False; every completion was unscorable, or
            no gradient finite, for as many steps in a row as ``limits`` allows. What was reached is saved.
    """
    console = console or TrainConsole()
    task = load_task(
        recipe.task,
        seed=recipe.seed,
        heldout=recipe.eval.problems if recipe.eval else 0,
        needed=recipe.rollout.needed_columns,
    )
    check_alpha(recipe.rollout.mixture, task)
    with (
        RunFolder.open(run) if resume else RunFolder.create(run) as folder,
        _scorers(recipe, task, folder, rewards) as (scorer, judge),
    ):
        parts = build_parts(
            recipe, progress=lambda done, of: console.phase("rollout", done, of), note=console.warn
        )
        loop = build_loop(recipe, parts, folder, task, scorer, judge if evaluate else None, console)
        if not resume:  # all that could be refused has been: from here on the folder is a run
            write_atomic(folder.config, dump_recipe(recipe))
        start_record(run, command=command)
        try:
            done = loop.restore()
            console.start(title_of(recipe), describe_plan(recipe), steps=recipe.steps, done=done)
            loop.fit()
            _finish(loop, folder, parts.loaded, console)
        except DivergenceError as error:  # what it has become is not saved: to go on from it would fail again
            kept = sorted(path.name for path in folder.checkpoints.glob("[0-9]*"))
            raise RunError(f"{error}. Lower it, and start again. {saved_state(kept)}") from error
        finally:
            console.close()
    return run


@contextmanager
def _scorers(
    recipe: Recipe, task: Task, folder: RunFolder, functions: Mapping[str, Function] | None
) -> Iterator[tuple[Scorer | None, Scorer | None]]:
    """What rewards completions, and what judges held-out answers: the same unless ``eval.reward`` says."""

    def scorer_of(rewards: Sequence[Reward] | None) -> Scorer | None:
        return Scorer(rewards, task, folder.rewards_log, functions) if rewards else None

    scorer = scorer_of(recipe.reward)
    apart = recipe.eval is not None and recipe.eval.reward is not None
    judge = scorer_of(eval_rewards(recipe)) if apart else scorer
    scorers = [one for one in dict.fromkeys((scorer, judge)) if one is not None]
    try:
        for one in scorers:
            one.check()
        yield scorer, judge
    finally:
        for one in scorers:
            one.close()


def _finish(loop: Loop, folder: RunFolder, loaded: LoadedModel, console: TrainConsole) -> None:
    """``final/``, the record and the report."""
    best = loop.evaluations.best(loop.done)
    if loop.finished:
        if folder.best.is_dir():
            replace_folder(folder.best, folder.final)
        elif best == loop.done:
            save_model(loaded.model, loaded.tokenizer, folder.final)
    loop.recorder.close()
    for organ in loop.organs:
        organ.close()
    finish_record(folder.path, loaded.model)
    write_report(folder.path)
    before, after = loop.evaluations.row_of(0), loop.evaluations.row_of(best)
    console.finish(folder.path, before, after, early=loop.evaluations.over)

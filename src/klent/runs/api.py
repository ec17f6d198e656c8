"""Training and evaluation from Python.

>>> run = klent.train("quickstart", steps=20, reward=my_function)  # doctest: +SKIP
>>> run.metrics[-1]["reward/mean"]  # doctest: +SKIP
>>> klent.evaluate(run).accuracy  # doctest: +SKIP
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from klent.config import Eval, Recipe, load_recipe, make_recipe
from klent.config.keywords import keyword_layer, recipe_values
from klent.errors import ConfigError, DataError, RunError
from klent.io.files import write_atomic
from klent.kit.text import plural
from klent.kit.world import is_follower
from klent.runs.folder import PROMPTS, RunFolder, refuse_occupied, remove_refused
from klent.runs.results import Evaluation, Row, Run, final_folder
from klent.tasks import DataTask, load_task
from klent.tasks.callables import Function, name_rewards

Rows: TypeAlias = Sequence[Mapping[str, object]]  # of a task: {"prompt": ..., ...}
TaskLike: TypeAlias = Mapping[str, object] | str | Path | Rows
RewardLike: TypeAlias = Function | str | Mapping[object, object] | Sequence[object]


def train(
    recipe: str | Path | Mapping[str, object] | None = None,
    *,
    model: str | Path | None = None,
    task: TaskLike | None = None,
    reward: RewardLike | None = None,
    method: str | None = None,
    steps: int | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    fresh: bool = False,
    quiet: bool = False,
    watch: bool = False,
    **overrides: object,
) -> Run:
    """Train a model; the run's folder is ``RUNS/NAME``, as that of ``klent train``.

    Everything is checked before a model is loaded. Ctrl-C finishes the step, saves and stops.

    Args:
        recipe: a shipped recipe's name, a path, or a mapping; None = the keywords alone.
        model: alias, folder or hub id.
        task: a section, such as ``{"gym": "chain_sum"}``; the path of a data file; or rows, ``{"prompt": ...,
            "answer": ...}`` each, which are written to the run folder.
        reward: as in a recipe, with Python functions wherever a name may stand: ``f``, ``[f, "exact"]``,
            ``{f: 0.5}``. A function takes ``completions`` and columns of the data by name, plain or async,
            and returns one number per completion. Like any reward it runs in a process of its own, as a copy
            made at the start: it can hang or crash, and changes nothing in this process.
        method: a preset; None = the recipe's, and ``grpo`` where there is neither a recipe nor a loss.
        steps: training steps.
        runs: folder of all runs.
        resume: continue the run if it exists, from its newest checkpoint; with ``name=`` alone its own
            ``config.yaml`` is the recipe. A function given as reward has to be given again.
        fresh: move a run that exists to ``NAME.1``, ``NAME.2``, ... and start anew.
        quiet: print nothing, but for the address that ``watch`` asks for.
        watch: serve a page that follows the run, as ``klent train --watch`` does, until the run ends; its address is
            printed.
        overrides: keys of a recipe, nested (``optimizer={"lr": 1e-5}``) or dotted (``**{"optimizer.lr":
            1e-5}``). They are merged over the recipe as on the command line.

    Returns:
        The run.

    Raises:
        ConfigError: a recipe that cannot be run, with what to change.
        RunError: the run exists and neither ``resume`` nor ``fresh`` is set, or training had to stop.

    Example:
        >>> def brief(completions, **columns):
        ...     return [float(len(text) < 80) for text in completions]
        >>> run = klent.train(  # doctest: +SKIP
        ...     model="smollm2-135m", task=[{"prompt": "Name a colour."}], reward=brief, steps=5, eval=None
        ... )
    """
    from klent.runs.console import QuietConsole, TrainConsole
    from klent.runs.notebook import NotebookConsole, in_notebook
    from klent.runs.train import train as run_training
    from klent.runs.watching import watched

    if resume and fresh:
        raise ConfigError("resume continues the run that exists, fresh starts another; choose one")
    given = _given(model=model, task=task, reward=reward, method=method, steps=steps) | overrides
    rows = _rows(task)
    if rows is not None:
        given["task"] = {"data": PROMPTS}
    base = _base(recipe, given, Path(runs), resume)
    functions: dict[str, Function] = {}
    settings = _build(base, given, functions)
    run = Path(runs) / settings.name
    resume = _claim(run, resume=resume, fresh=fresh)
    command = _command("klent.train", recipe, {**given, **_given(task=task)})
    shown = NotebookConsole if in_notebook() else TrainConsole
    console = QuietConsole() if quiet else shown()
    made = [folder for folder in (run, *run.parents) if not folder.exists() and not is_follower()]
    try:
        if rows is not None:
            settings = _with_rows(settings, rows, run, resume=resume)
        if resume:
            refuse_another_recipe(settings, run)
        with watched(run, on=watch and not is_follower(), say=print, warn=console.warn):
            run_training(settings, run, command=command, resume=resume, console=console, rewards=functions)
    except BaseException:
        remove_refused(run, made)
        raise
    return Run(run)


def evaluate(
    model_or_run: "str | Path | Run",
    task: TaskLike | None = None,
    reward: RewardLike | None = None,
    *,
    problems: int | None = None,
    samples: int | None = None,
    **overrides: object,
) -> Evaluation:
    """Mean reward, accuracy and entropy of a model, or of a run's trained model, on problems.

    Args:
        model_or_run: alias, folder or hub id of a model; or a run, whose task, reward, sampling and seed are
            then those of the recipe.
        task: a section, whose held-out problems are solved; or a data file or rows, all of which are.
        reward: what scores the answers (1 is right and 0 wrong, for an accuracy); as of :func:`train`.
        problems: at most so many problems; None = ``eval.problems``, all of a file or of rows.
        samples: completions of each; None = ``eval.samples``.
        overrides: other keys of the recipe, such as ``rollout={"max_tokens": 64}``.

    Raises:
        ConfigError: no task or no reward is known.
        RunError: the run has not finished.
    """
    functions: dict[str, Function] = {}
    of_run = isinstance(model_or_run, Run)
    given = _given(**{"eval.problems": problems, "eval.samples": samples}) | overrides
    given |= _given(task=task, **{"eval.reward" if of_run else "reward": reward})
    with _rows_in_a_file(_rows(task)) as file:
        if file is not None:
            given["task"] = {"data": file}
        if isinstance(model_or_run, Run):
            model, base = str(final_folder(model_or_run)), model_or_run.path / "config.yaml"
            recipe = _build(base, given, functions, caller="klent.evaluate")
        else:
            model = str(model_or_run)
            values = {"name": "evaluation", "model": model, "method": "grpo", "steps": 1}
            recipe = _build(values, given, functions, caller="klent.evaluate")
        every_row = task is not None and not isinstance(task, Mapping)
        row = _measure(model, recipe, functions, problems if every_row else None, every_row=every_row)
    return Evaluation.of(row)


def step_aside(run: Path) -> Path | None:
    """Rename a run that exists, and that no process is using, to the first free NAME.1, NAME.2, ...

    Returns:
        Its new path; None if there is no run.
    """
    if not (run / "config.yaml").is_file():
        return None
    RunFolder.open(run).close()
    number = 1
    while (aside := run.with_name(f"{run.name}.{number}")).exists():
        number += 1
    run.rename(aside)
    return aside


def refuse_another_recipe(settings: Recipe, run: Path) -> None:
    """Refuse to continue a run by a recipe that differs from its own.

    Raises:
        ConfigError: they differ, with the keys that do.
    """
    before = load_recipe(run / "config.yaml")
    changed = [key for key, value in settings if value != getattr(before, key)]
    if changed:
        raise ConfigError(
            f"{run} was started with other values of {', '.join(changed)}. Continue it as it was with "
            f"`klent resume {run}`, or start another run with name=..."
        )


def _given(**values: object) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None}


def _rows(task: TaskLike | None) -> Rows | None:
    """The rows of a task that is given as such; None for a section or a path."""
    return None if task is None or isinstance(task, str | Path | Mapping) else task


def _base(
    recipe: str | Path | Mapping[str, object] | None, given: dict[str, object], runs: Path, resume: bool
) -> str | Path | Mapping[str, object]:
    """What the keywords are merged over."""
    if recipe is not None:
        return recipe
    config = runs / str(given.get("name", "run")) / "config.yaml"
    if resume and config.is_file():
        return config
    if not any(key == "method" or key.split(".")[0] == "loss" for key in given):
        return {"method": "grpo"}
    return {}


def _build(
    base: str | Path | Mapping[str, object],
    given: Mapping[str, object],
    functions: dict[str, Function],
    *,
    caller: str = "klent.train",
) -> Recipe:
    """The recipe of a base and keywords; ``functions`` receives the rewards that are Python functions."""
    keywords = dict(given)
    if isinstance(keywords.get("task"), str | Path):
        keywords["task"] = {"data": str(keywords["task"])}
    upper = keyword_layer(name_rewards(keywords, functions), source=caller)
    if isinstance(base, Mapping):
        return make_recipe(recipe_values(name_rewards(base, functions), source=caller), upper)
    return load_recipe(base, upper)


def _claim(run: Path, *, resume: bool, fresh: bool) -> bool:
    """Whether to resume the run; one that exists is moved aside with ``fresh``, else refused, by the first rank."""
    if is_follower():
        return resume and (run / "config.yaml").is_file()
    if not (run / "config.yaml").is_file():
        refuse_occupied(run)
        return False
    if fresh:
        step_aside(run)
    elif not resume:
        number = 2
        while (free := run.with_name(f"{run.name}-{number}")).exists():
            number += 1
        raise RunError(
            f"{run} already holds a run. Pass resume=True to continue it, fresh=True to move it aside, or "
            f"name={free.name!r} to start another"
        )
    return resume


def _with_rows(settings: Recipe, rows: Rows, run: Path, *, resume: bool) -> Recipe:
    """The recipe whose data are ``rows``, in a file of the run folder."""
    file = run / PROMPTS
    content = _as_lines(rows)
    if not resume:
        write_atomic(file, content)
    elif not file.is_file() or file.read_text(encoding="utf-8") != content:
        raise ConfigError(
            f"{run} was started with other rows; leave task out to continue with those in {file}"
        )
    section = settings.task.model_copy(update={"data": str(file)})
    return settings.model_copy(update={"task": section})


def _as_lines(rows: Rows) -> str:
    lines = []
    for number, row in enumerate(rows, 1):
        try:
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        except (TypeError, ValueError) as error:
            raise DataError(f"task: row {number} cannot be written as JSON: {error}") from error
    return "".join(lines)


@contextmanager
def _rows_in_a_file(rows: Rows | None) -> Iterator[str | None]:
    if rows is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="klent-") as folder:
        file = Path(folder) / PROMPTS
        file.write_text(_as_lines(rows), encoding="utf-8")
        yield str(file)


def _measure(
    model: str, recipe: Recipe, functions: Mapping[str, Function], problems: int | None, *, every_row: bool
) -> Row:
    """Solve the problems of a recipe's task: the held-out ones, or every row up to ``problems``."""
    from klent.runs.engines import build_sampler
    from klent.runs.evaluate import evaluate_policy, examined_task, open_judge
    from klent.runs.targets import open_model

    recipe = recipe.model_copy(update={"eval": recipe.eval or Eval()})
    if recipe.eval is None or not recipe.judged:
        raise ConfigError("klent.evaluate: there is no reward to evaluate with; pass reward=...")
    every = load_task(recipe.task, seed=recipe.seed, heldout=0) if every_row else None
    task = examined_task(recipe, every)
    if every_row and isinstance(task, DataTask):
        prompts = [task.train(index) for index in range(min(problems or len(task), len(task)))]
    else:
        prompts = task.heldout(recipe.eval.problems)
    if not prompts:
        raise DataError(
            "klent.evaluate: the task has no held-out problems; pass its rows or its file as task"
        )
    with open_judge(recipe, task, functions, sampler=model) as (judge, _):
        loaded, player = open_model(model, recipe)
        return evaluate_policy(
            loaded,
            recipe.text_rollout,
            recipe.eval,
            scorer=judge,
            prompts=prompts,
            seed=recipe.seed,
            engine=build_sampler(loaded, recipe.text_rollout, environments=task.environments, player=player),
            environments=task.environments,
        )


def _command(function: str, recipe: object, given: Mapping[str, object]) -> str:
    """The call as Python code, for the record; functions and long values are abbreviated."""
    arguments = [] if recipe is None else [_shown(recipe)]
    dotted = {key: value for key, value in given.items() if "." in key}
    arguments += [f"{key}={_shown(value)}" for key, value in given.items() if key not in dotted]
    if dotted:
        pairs = ", ".join(f"{key!r}: {_shown(value)}" for key, value in dotted.items())
        arguments.append(f"**{{{pairs}}}")
    return f"{function}({', '.join(arguments)})"


def _shown(value: object) -> str:
    if callable(value):
        return str(getattr(value, "__name__", type(value).__name__))
    if isinstance(value, list | tuple) and len(repr(value)) > 200:
        return f"[... {plural(len(value), 'row')}]"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items()) + "}"
    return repr(str(value)) if isinstance(value, Path) else repr(value)

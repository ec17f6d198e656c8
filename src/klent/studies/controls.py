"""What training without labels brings, beside what is to be had without training."""

import csv
import io
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from klent.config import DatasetRollout, GymSettings, Recipe, dump_recipe
from klent.config.load import make_recipe
from klent.control.schedule import derive_seed
from klent.errors import ConfigError, RunError
from klent.io.files import write_atomic
from klent.measure.certainty import extra_measures
from klent.measure.evaluate import eval_rewards, evaluate, wilson
from klent.models.load import load_policy
from klent.runs.build import build_sampler
from klent.runs.console import QuietConsole
from klent.runs.loop import train
from klent.tasks import DataTask, Scorer, Task, load_task

TEMPERATURES = (0.0, 0.3, 0.6, 1.0)
BEFORE = "before training"
_COLUMNS = ("accuracy", "pass@k", "majority", "agreement", "entropy", "length")
_RL = {"prompts_per_step": 8, "group_size": 8}  # of the stage with right answers, unless a recipe is given

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """What is trained, whether its course is measured, and the arm whose model it begins with, or None."""

    recipe: Recipe
    measured: bool = False
    after: str | None = None


def run_controls(
    recipe: Recipe,
    *,
    runs: Path,
    seeds: int,
    say: Callable[[str], None],
    rl: Recipe | None = None,
    names: Sequence[str] | None = None,
) -> Rows:
    """Measure the model before training, then train and measure every arm with every seed.

    Args:
        recipe: what is on trial; needs ``eval`` and a reward that knows right from wrong.
        runs: arms train in ``RUNS/NAME-controls/ARM-SEED``; a finished one is not trained again.
        seeds: arms are trained with as many, from the recipe's; 0 = train nothing.
        say: told what is being done.
        rl: trains with right answers before and after ``recipe``, where that one knows no reward; its model
            and seed are not looked at. None = GRPO on all prompts, as many steps.
        names: arms to train, with those whose models they begin with; None = all.

    Returns:
        A row for each arm, seed and temperature: ``arm``, ``seed``, ``temperature``, ``accuracy``, ``low``,
        ``high``, ``pass@k``, ``majority``, ``agreement``, ``entropy``, ``length``, ``problems``, ``samples``,
        and ``solved``, the share of right answers to each problem.
    """
    if recipe.eval is None or isinstance(recipe.rollout, DatasetRollout):
        raise ConfigError("controls need an `eval` section and a rollout that samples")
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    wanted = chosen(arms(recipe, task, rl), names)
    own = recipe.rollout.temperature
    with Scorer(eval_rewards(recipe) or (), task) as scorer:
        scorer.check()
        say(f"measuring {recipe.model}")
        temperatures = sorted({*TEMPERATURES, own})
        rows = _measure(recipe.model, recipe, task, scorer, temperatures, {"arm": BEFORE, "seed": ""})
        for seed in range(recipe.seed, recipe.seed + seeds):  # whole seeds: a cut leaves whole comparisons
            for name, arm in wanted.items():
                start = {"model": str(_folder(runs, recipe, arm.after, seed) / "final")} if arm.after else {}
                folder = _folder(runs, recipe, name, seed)
                _train(changed(arm.recipe, {"seed": seed, **start}), folder, say, measure=arm.measured)
                label = {"arm": name, "seed": seed}
                rows += _measure(str(folder / "final"), recipe, task, scorer, sorted({0.0, own, 1.0}), label)
    return rows


def arms(recipe: Recipe, task: Task, rl: Recipe | None = None) -> dict[str, Arm]:
    """Every arm: the recipe, right answers, chance, another prompt, RL before and after a recipe without it.

    All keep the held-out problems of ``task`` out of training, whatever their seed: it decides what is
    sampled, and not the problems. Only the recipe as it is written is measured in the course of training, and
    arms that stop early.
    """
    assert recipe.eval is not None
    early = recipe.eval.early_stop is not None
    gold = [reward.model_dump() for reward in recipe.eval.reward or recipe.reward or ()]
    recipe = _pinned(recipe, recipe)
    learns = {} if recipe.advantage else {"method": "grpo", "loss": None, "advantage": None, "reduce": None}
    found = {
        "as written": Arm(recipe, measured=True),
        "right answers": Arm(changed(recipe, {**learns, "reward": gold}), early),
        "random rewards": Arm(changed(recipe, {**learns, "reward": [{"fn": "random"}]}), early),
    }
    if recipe.task.only is not None:
        generator = random.Random(f"{recipe.seed}/another prompt")
        there = range(10_000) if isinstance(recipe.task, GymSettings) else _rows(recipe, task)
        others = generator.sample([n for n in there if n not in recipe.task.only], len(recipe.task.only))
        only = recipe.task.model_dump() | {"only": others}
        found["another prompt"] = Arm(changed(recipe, {"task": only}), early)
    if not recipe.advantage:
        rl = _pinned(rl, recipe) if rl else _reinforced(recipe, gold)
        found |= {
            "RL": Arm(rl, early),
            "this, then RL": Arm(rl, early, after="as written"),
            "RL, then this": Arm(recipe, early, after="RL"),
        }
    return found


def chosen(found: dict[str, Arm], names: Sequence[str] | None) -> dict[str, Arm]:
    """The arms of these names, and those that they begin with; None = all.

    Raises:
        ConfigError: a name that no arm has.
    """
    if names is None:
        return found
    for name in names:
        if name not in found:
            raise ConfigError(f"this recipe has no arm {name!r}; arms are: {', '.join(map(repr, found))}")
    begun = {found[name].after for name in names}
    return {name: arm for name, arm in found.items() if name in names or name in begun}


def _pinned(recipe: Recipe, to: Recipe) -> Recipe:
    """A recipe on another's model and held-out problems, and with its task's seed whatever the run's is."""
    seed = to.seed if to.task.seed is None else to.task.seed
    task = recipe.task.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"model": to.model, "task": task, "eval": to.eval})


def _reinforced(recipe: Recipe, gold: list[dict[str, Any]]) -> Recipe:
    """GRPO with right answers on all prompts of a recipe that learns from one."""
    fresh = {"method": "grpo", "loss": None, "advantage": None, "reduce": None, "reward": gold, **_RL}
    task, rollout = recipe.task.model_dump() | {"only": None}, recipe.rollout.model_dump()
    return changed(recipe, {**fresh, "task": task, "rollout": rollout | {"temperature": 1.0}})


def _folder(runs: Path, recipe: Recipe, arm: str, seed: int) -> Path:
    return runs / f"{recipe.name}-controls" / f"{arm.replace(',', '').replace(' ', '_')}-{seed}"


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with other values; None takes a key out, so that a method or a default fills it."""
    values: dict[str, Any] = yaml.safe_load(dump_recipe(recipe))
    if recipe.eval is not None:
        values["eval"]["reward"] = values["eval"]["reward"] or values["reward"]
    values |= changes
    out = {key for key, value in changes.items() if value is None}
    return make_recipe({key: value for key, value in values.items() if key not in out})


def _rows(recipe: Recipe, task: Task) -> list[int]:
    """The numbers of the rows that a data task may train on."""
    section = recipe.task.model_copy(update={"only": None})
    every = load_task(section, seed=recipe.seed, heldout=0)
    assert isinstance(every, DataTask)
    held = {prompt.id for prompt in task.heldout(len(every))}
    rows = (every.train(place).id for place in range(len(every)))
    return sorted(int(row.rpartition(":")[2]) for row in rows if row not in held)


def _train(recipe: Recipe, folder: Path, say: Callable[[str], None], *, measure: bool) -> None:
    config = folder / "config.yaml"
    if config.exists() and config.read_text(encoding="utf-8") != dump_recipe(recipe):
        raise RunError(f"{folder} is a run of another recipe; move it away, or give this one another `name`")
    if (folder / "final").is_dir():
        say(f"{folder} is there")
        return
    say(f"training {folder}")
    command = f"klent train {folder / 'config.yaml'}"
    train(recipe, folder, command=command, resume=config.exists(), measure=measure, console=QuietConsole())


def _measure(
    model: str,
    recipe: Recipe,
    task: Task,
    scorer: Scorer,
    temperatures: Sequence[float],
    label: dict[str, Any],
) -> Rows:
    """One model at several temperatures, on the recipe's held-out problems."""
    assert recipe.eval is not None
    loaded = load_policy(model, dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for temperature in temperatures:
        samples = recipe.eval.samples if temperature else 1
        same = recipe.eval.same or "text"
        changes = {"temperatures": (), "logits": False, "same": same, "samples": samples, "early_stop": None}
        settings = recipe.eval.model_copy(update=changes)
        here = recipe.model_copy(update={"eval": settings})
        seed = derive_seed(recipe.seed, "eval")
        row = evaluate(
            build_sampler(loaded, recipe.rollout.model_copy(update={"temperature": temperature})),
            scorer,
            task.heldout(recipe.eval.problems),
            samples=samples,
            seed=seed,
            step=0,
            more=extra_measures(here, loaded, scorer, seed),
        )
        row["pass@k"] = row[f"pass@{samples}"] if samples > 1 else None
        row["solved"] = [statistics.fmean(problem) for problem in row["correct"]]
        kept = (*_COLUMNS, "low", "high", "problems", "samples", "solved")
        rows.append({**label, "temperature": temperature, **{key: row[key] for key in kept}})
    return rows


def summary(rows: Rows) -> list[dict[str, str]]:
    """A line for each arm and temperature: means over seeds, intervals over problems, the range over seeds.

    ``change`` is the accuracy less that of the model before training at the same temperature, problem by
    problem, with a 95% interval: problems are the units, and what other seeds would give is not in it.
    """
    before = {row["temperature"]: row["solved"] for row in rows if row["arm"] == BEFORE}
    lines = []
    for arm, temperature in dict.fromkeys((row["arm"], row["temperature"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["temperature"]) == (arm, temperature)]
        accuracy = [row["accuracy"] for row in own]
        low, high = wilson(statistics.fmean(accuracy), own[0]["problems"])
        line = {
            "arm": arm,
            "temperature": "greedy" if temperature == 0 else f"{temperature:g}",
            "seeds": str(len(own)) if arm != BEFORE else "–",
        }
        for name in _COLUMNS:
            values = [row[name] for row in own if row[name] is not None]
            line[name] = f"{statistics.fmean(values):.3f}" if values else "–"
        line["interval"] = f"{low:.2f} to {high:.2f}"
        line["over seeds"] = f"{min(accuracy):.3f} to {max(accuracy):.3f}" if len(own) > 1 else "–"
        solved = [row["solved"] for row in own]
        line["change"] = _change(solved, before[temperature]) if arm != BEFORE else "–"
        lines.append(line)
    return lines


def _change(solved: Sequence[Sequence[float]], before: Sequence[float]) -> str:
    """``+0.120 ± 0.034``: mean over problems of the mean over seeds less before."""
    change = [statistics.fmean(p) - b for *p, b in zip(*solved, before, strict=True)]
    margin = 1.96 * statistics.stdev(change) / len(change) ** 0.5 if len(change) > 1 else float("nan")
    return f"{statistics.fmean(change):+.3f} ± {margin:.3f}"


def write_csv(path: Path, rows: Rows) -> None:
    """Every row with every column; ``solved`` as numbers with spaces between."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "solved": " ".join(f"{share:.4g}" for share in row["solved"])} for row in rows)
    write_atomic(path, text.getvalue())


def read_csv(path: Path) -> Rows:
    """What :func:`write_csv` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        rows: Rows = [dict(row) for row in csv.DictReader(file)]
    for row in rows:
        row["solved"] = [float(share) for share in row["solved"].split()]
        row |= {key: None if row[key] == "" else float(row[key]) for key in ("temperature", *_COLUMNS)}
        row["problems"] = int(row["problems"])
    return rows

"""What training without labels brings, beside what is to be had without training."""

import csv
import io
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from klent.config import DatasetRollout, GymSettings, Recipe, dump_recipe
from klent.config.load import make_recipe
from klent.console import QuietConsole
from klent.errors import ConfigError
from klent.files import write_atomic
from klent.models import load_policy
from klent.tasks import DataTask, Scorer, Task, load_task
from klent.training.certainty import extra_measures
from klent.training.evaluate import eval_rewards, evaluate
from klent.training.parts import build_sampler
from klent.training.schedule import derive_seed
from klent.training.trainer import train

TEMPERATURES = (0.0, 0.3, 0.6, 1.0)
BEFORE = "before training"
_COLUMNS = ("accuracy", "pass@k", "majority", "agreement", "entropy", "length")

Rows = list[dict[str, Any]]


def run_controls(recipe: Recipe, *, runs: Path, seeds: int, say: Callable[[str], None]) -> Rows:
    """Measure the model before training, then train and measure every arm with every seed.

    Args:
        recipe: what is on trial; needs ``eval`` and a reward that knows right from wrong.
        runs: arms train in ``RUNS/NAME-controls/ARM-SEED``; a finished one is not trained again.
        seeds: arms are trained with as many, from the recipe's; 0 = train nothing.
        say: told what is being done.

    Returns:
        A row for each arm, seed and temperature: ``arm``, ``seed``, ``temperature``, ``accuracy``, ``low``,
        ``high``, ``pass@k``, ``majority``, ``agreement``, ``entropy``, ``length``, ``problems``, ``samples``.
    """
    if recipe.eval is None or isinstance(recipe.rollout, DatasetRollout):
        raise ConfigError("controls need an `eval` section and a rollout that samples")
    task = load_task(recipe.task.model_dump(), seed=recipe.seed, heldout=recipe.eval.problems)
    own = recipe.rollout.temperature
    with Scorer(eval_rewards(recipe) or (), task) as scorer:
        scorer.check()
        say(f"measuring {recipe.model}")
        temperatures = sorted({*TEMPERATURES, own})
        rows = _measure(recipe.model, recipe, task, scorer, temperatures, {"arm": BEFORE, "seed": ""})
        for arm, changes in (arms(recipe) if seeds else {}).items():
            for seed in range(recipe.seed, recipe.seed + seeds):
                folder = runs / f"{recipe.name}-controls" / f"{arm.replace(' ', '_')}-{seed}"
                _train(changed(recipe, changes | {"seed": seed}), folder, say)
                label = {"arm": arm, "seed": seed}
                rows += _measure(str(folder / "final"), recipe, task, scorer, sorted({0.0, own}), label)
    return rows


def arms(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Every arm and what it changes: the recipe as it is, right answers, chance, another prompt."""
    assert recipe.eval is not None
    gold = [reward.model_dump() for reward in recipe.eval.reward or recipe.reward or ()]
    learns = {} if recipe.advantage else {"method": "grpo", "loss": None, "advantage": None, "reduce": None}
    found: dict[str, dict[str, Any]] = {
        "as written": {},
        "right answers": {**learns, "reward": gold},
        "random rewards": {**learns, "reward": [{"fn": "random"}]},
    }
    if recipe.task.only is not None:
        generator = random.Random(f"{recipe.seed}/another prompt")
        there = range(10_000) if isinstance(recipe.task, GymSettings) else _rows(recipe)
        others = generator.sample([n for n in there if n not in recipe.task.only], len(recipe.task.only))
        task = recipe.task.model_dump() | {"only": others}
        found["another prompt"] = {"task": task}
    return found


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """A recipe with other values; None takes a key out, so that a method or a default fills it."""
    values: dict[str, Any] = yaml.safe_load(dump_recipe(recipe))
    values["eval"]["reward"] = values["eval"]["reward"] or values["reward"]
    values |= changes
    out = {key for key, value in changes.items() if value is None}
    return make_recipe({key: value for key, value in values.items() if key not in out})


def _rows(recipe: Recipe) -> list[int]:
    """The numbers of the rows that a data task may train on."""
    values = recipe.task.model_dump() | {"only": None}
    task = load_task(values, seed=recipe.seed, heldout=0)
    assert isinstance(task, DataTask)
    return sorted(int(task.train(place).id.rpartition(":")[2]) for place in range(len(task)))


def _train(recipe: Recipe, folder: Path, say: Callable[[str], None]) -> None:
    if (folder / "final").is_dir():
        say(f"{folder} is there")
        return
    say(f"training {folder}")
    command = f"klent train {folder / 'config.yaml'}"
    train(recipe, folder, command=command, resume=(folder / "config.yaml").exists(), console=QuietConsole())


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
        changes = {"temperatures": (), "logits": False, "same": same, "samples": samples}
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
        kept = (*_COLUMNS, "low", "high", "problems", "samples")
        rows.append({**label, "temperature": temperature, **{key: row[key] for key in kept}})
    return rows


def summary(rows: Rows) -> list[dict[str, str]]:
    """A line for each arm and temperature: means over seeds, and the range of the accuracy."""
    lines = []
    for arm, temperature in dict.fromkeys((row["arm"], row["temperature"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["temperature"]) == (arm, temperature)]
        accuracy = [row["accuracy"] for row in own]
        low, high = (min(accuracy), max(accuracy)) if len(own) > 1 else (own[0]["low"], own[0]["high"])
        line = {
            "arm": arm,
            "temperature": "greedy" if temperature == 0 else f"{temperature:g}",
            "seeds": str(len(own)),
        }
        for name in _COLUMNS:
            values = [row[name] for row in own if row[name] is not None]
            line[name] = f"{statistics.fmean(values):.3f}" if values else "–"
        line["interval or range"] = f"{low:.2f} to {high:.2f}"
        lines.append(line)
    return lines


def write_csv(path: Path, rows: Rows) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())

"""What training without labels gains over what needs no training: the arms of ``klent controls``."""

import csv
import io
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from klent.config import Eval, Recipe, TransformersRollout, dump_recipe, load_recipe
from klent.config.load import make_recipe
from klent.errors import ConfigError, RunError
from klent.io.files import read_text, write_atomic
from klent.kit.statistics import mean_and_margin, standard_error, wilson
from klent.kit.student import t_bound
from klent.models.load import LoadedModel
from klent.runs.console import QuietConsole
from klent.runs.evaluate import eval_rewards, evaluate_policy, load_on_device
from klent.runs.judges import open_judges
from klent.runs.train import train
from klent.tasks import DataTask, Scorer, Task, load_task

TEMPERATURES = (0.0, 0.3, 0.6, 1.0)
BEFORE = "before training"
_COLUMNS = ("accuracy", "pass@k", "majority", "agreement", "entropy", "length")
_RL = {"prompts_per_step": 8, "group_size": 8}  # of the stage with right answers, unless a recipe is given

Row = dict[str, Any]
"""One measurement: ``arm``, ``seed``, ``temperature`` and the columns that :func:`run_controls` names."""

Rows = list[Row]
Shares = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Arm:
    """One training of the study.

    Attributes:
        recipe: what is trained.
        measured: whether it is evaluated during training.
        after: the arm whose final model it starts from; None = the recipe's own model.
    """

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
        recipe: the recipe under study; needs ``eval`` and a reward that tells right from wrong.
        runs: arms train in ``RUNS/NAME-controls/ARM-SEED``; a finished one is not trained again.
        seeds: number of seeds per arm, counted from the recipe's own; 0 = train nothing.
        say: receives one line per thing that is done.
        rl: trains with right answers before and after ``recipe``, if that one uses no reward; its model and
            seed are ignored. None = GRPO on all prompts, for as many steps.
        names: arms to train, with those whose models they start from; None = all.

    Returns:
        One row per arm, seed and temperature: ``arm``, ``seed``, ``temperature``, ``accuracy``, ``low``,
        ``high``, ``pass@k``, ``majority``, ``agreement``, ``entropy``, ``length``, ``problems``, ``samples``,
        and ``solved``, the share of right answers to each problem.

    Raises:
        ConfigError: the recipe has no ``eval`` section or replays a data set, or a name that no arm has.
        RunError: an arm's folder holds a run of another recipe.
    """
    if recipe.eval is None or not recipe.rollout.sampled:
        raise ConfigError(
            "klent controls needs an `eval` section and a rollout that samples; set eval.problems=64, and no "
            "rollout.engine=dataset"
        )
    if recipe.task.pays:
        raise ConfigError(
            "klent controls replaces the reward of single-turn answers, and task.env gives its own rewards, turn by "
            "turn; use task.gym or task.data"
        )
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    wanted = chosen(arms(recipe, task, rl), names)
    trained_at = recipe.rollout.temperature
    with Scorer(eval_rewards(recipe) or (), task, judge=open_judges(recipe)) as scorer:
        scorer.check()
        exam = Exam(recipe.text_rollout.for_evaluation(), recipe.eval, task, scorer, recipe.seed)
        say(f"measuring {recipe.model}")
        rows = exam.measure(load_on_device(recipe.model, recipe), {*TEMPERATURES, trained_at})
        rows = [{"arm": BEFORE, "seed": "", **row} for row in rows]
        for seed in range(recipe.seed, recipe.seed + seeds):  # seed by seed, so a stop leaves whole blocks
            for name, arm in wanted.items():
                start = {"model": str(_folder(runs, recipe, arm.after, seed) / "final")} if arm.after else {}
                folder = _folder(runs, recipe, name, seed)
                _train(changed(arm.recipe, {"seed": seed, **start}), folder, say, measure=arm.measured)
                final = load_on_device(str(folder / "final"), recipe)
                measured = exam.measure(final, {0.0, trained_at, 1.0})
                rows += [{"arm": name, "seed": seed, **row} for row in measured]
    return rows


@dataclass(frozen=True)
class Exam:
    """How every model of the study is measured: the same problems, judge and seed.

    Attributes:
        rollout: how to sample, but for the temperature.
        settings: the recipe's ``eval`` section.
        task: where the held-out problems come from.
        scorer: what tells right from wrong.
        seed: of the recipe.
    """

    rollout: TransformersRollout
    settings: Eval
    task: Task
    scorer: Scorer
    seed: int

    def measure(self, loaded: LoadedModel, temperatures: set[float]) -> Rows:
        """One row per temperature, ascending; greedy (0) takes one sample per problem."""
        return [self._measure_at(loaded, temperature) for temperature in sorted(temperatures)]

    def _measure_at(self, loaded: LoadedModel, temperature: float) -> Row:
        samples = self.settings.samples if temperature else 1
        changes = {"temperatures": (), "logits": False, "samples": samples, "early_stop": None}
        row: Row = evaluate_policy(
            loaded,
            self.rollout.model_copy(update={"temperature": temperature}),
            self.settings.model_copy(update={**changes, "same": self.settings.same or "text"}),
            scorer=self.scorer,
            prompts=self.task.heldout(self.settings.problems),
            seed=self.seed,
        )
        if "correct" not in row:
            raise ConfigError(
                "klent controls compares accuracies, and these rewards are graded, or scored nothing; set "
                "eval.reward to one that gives 1 to right answers and 0 to wrong ones"
            )
        row["pass@k"] = row[f"pass@{samples}"] if samples > 1 else None
        row["solved"] = [statistics.fmean(problem) for problem in row["correct"]]
        columns = (*_COLUMNS, "low", "high", "problems", "samples", "solved")
        return {"temperature": temperature, **{name: row[name] for name in columns}}


def arms(recipe: Recipe, task: Task, rl: Recipe | None = None) -> dict[str, Arm]:
    """Every arm: the recipe, right answers, chance, another prompt, RL before and after a recipe without it.

    All keep the held-out problems of ``task`` out of training, whatever their seed, which decides only what
    is sampled. Only the recipe as written, and arms that stop early, are evaluated during training.
    """
    assert recipe.eval is not None
    early = recipe.eval.early_stop is not None
    gold = [reward.model_dump() for reward in recipe.eval.reward or recipe.reward or ()]
    recipe = _pinned(recipe, recipe)
    learns = {} if recipe.advantage else {"method": "grpo", "loss": None, "advantage": None, "reduce": None}
    every_arm = {
        "as written": Arm(recipe, measured=True),
        "right answers": Arm(changed(recipe, {**learns, "reward": gold}), early),
        "random rewards": Arm(changed(recipe, {**learns, "reward": [{"fn": "random"}]}), early),
    }
    if recipe.task.only is not None:
        generator = random.Random(f"{recipe.seed}/another prompt")
        rows = _rows(recipe, task) if isinstance(task, Sized) else range(10_000)
        others = generator.sample([n for n in rows if n not in recipe.task.only], len(recipe.task.only))
        only = recipe.task.model_dump() | {"only": others}
        every_arm["another prompt"] = Arm(changed(recipe, {"task": only}), early)
    if not recipe.advantage:
        rl = _pinned(rl, recipe) if rl else _reinforced(recipe, gold)
        every_arm |= {
            "RL": Arm(rl, early),
            "this, then RL": Arm(rl, early, after="as written"),
            "RL, then this": Arm(recipe, early, after="RL"),
        }
    return every_arm


def chosen(every_arm: dict[str, Arm], names: Sequence[str] | None) -> dict[str, Arm]:
    """The arms of these names, and those that they start from; None = all.

    Raises:
        ConfigError: a name that no arm has.
    """
    if names is None:
        return every_arm
    for name in names:
        if name not in every_arm:
            listed = ", ".join(map(repr, every_arm))
            raise ConfigError(f"this recipe has no arm {name!r}; arms are: {listed}")
    starts = {every_arm[name].after for name in names}
    return {name: arm for name, arm in every_arm.items() if name in names or name in starts}


def _pinned(recipe: Recipe, to: Recipe) -> Recipe:
    """A recipe with another's model and held-out problems, and with its task's seed fixed."""
    seed = to.seed if to.task.seed is None else to.task.seed
    task = recipe.task.model_copy(update={"seed": seed})
    return recipe.model_copy(update={"model": to.model, "task": task, "eval": to.eval})


def _reinforced(recipe: Recipe, gold: list[Row]) -> Recipe:
    """GRPO with right answers on all prompts of a recipe that learns from one."""
    fresh = {"method": "grpo", "loss": None, "advantage": None, "reduce": None, "reward": gold, **_RL}
    task, rollout = recipe.task.model_dump() | {"only": None}, recipe.rollout.model_dump()
    return changed(recipe, {**fresh, "task": task, "rollout": rollout | {"temperature": 1.0}})


def _folder(runs: Path, recipe: Recipe, arm: str, seed: int) -> Path:
    return runs / f"{recipe.name}-controls" / f"{arm.replace(',', '').replace(' ', '_')}-{seed}"


def changed(recipe: Recipe, changes: Mapping[str, object]) -> Recipe:
    """A recipe with other values; None removes a key, so a method or a default fills it."""
    values: Row = yaml.safe_load(dump_recipe(recipe))
    if recipe.eval is not None:
        values["eval"]["reward"] = values["eval"]["reward"] or values["reward"]
    values |= changes
    removed = {key for key, value in changes.items() if value is None}
    return make_recipe({key: value for key, value in values.items() if key not in removed})


def _rows(recipe: Recipe, task: Task) -> list[int]:
    """Numbers of the rows that a data task may train on."""
    section = recipe.task.model_copy(update={"only": None})
    every = load_task(section, seed=recipe.seed, heldout=0)
    assert isinstance(every, DataTask)
    heldout = {prompt.id for prompt in task.heldout(len(every))}
    ids = (every.train(position).id for position in range(len(every)))
    return sorted(int(id.rpartition(":")[2]) for id in ids if id not in heldout)


def _train(recipe: Recipe, folder: Path, say: Callable[[str], None], *, measure: bool) -> None:
    config = folder / "config.yaml"
    if config.exists():
        recipe = recipe.dated(load_recipe(config).task.clock)
    if config.exists() and read_text(config) != dump_recipe(recipe):
        raise RunError(f"{folder} is a run of another recipe; move it away, or give this one another `name`")
    if (folder / "final").is_dir():
        say(f"skipping {folder}: already complete")
        return
    say(f"training {folder}")
    command = f"klent train {folder / 'config.yaml'}"
    train(recipe, folder, command=command, resume=config.exists(), evaluate=measure, console=QuietConsole())


def summary(rows: Rows) -> list[dict[str, str]]:
    """One line per arm and temperature: means over seeds, intervals over problems, the range over seeds.

    ``change`` is the accuracy minus that of the model before training at the same temperature, problem by
    problem, with the margin of a 95% interval over problems, for these trained models. ``± over seeds`` is
    the margin over training runs on these problems, by Student's t: what other seeds would give.
    """
    before = {row["temperature"]: row["solved"] for row in rows if row["arm"] == BEFORE}
    lines = []
    for arm, temperature in dict.fromkeys((row["arm"], row["temperature"]) for row in rows):
        of_seeds = [row for row in rows if (row["arm"], row["temperature"]) == (arm, temperature)]
        accuracy = [row["accuracy"] for row in of_seeds]
        low, high = wilson(statistics.fmean(accuracy), of_seeds[0]["problems"])
        line = {
            "arm": arm,
            "temperature": "greedy" if temperature == 0 else f"{temperature:g}",
            "seeds": str(len(of_seeds)) if arm != BEFORE else "–",
        }
        for name in _COLUMNS:
            values = [row[name] for row in of_seeds if row[name] is not None]
            line[name] = f"{statistics.fmean(values):.3f}" if values else "–"
        line["interval"] = f"{low:.2f} to {high:.2f}"
        line["over seeds"] = f"{min(accuracy):.3f} to {max(accuracy):.3f}" if len(of_seeds) > 1 else "–"
        solved = [row["solved"] for row in of_seeds]
        line["change"], line["± over seeds"] = "–", "–"
        if arm != BEFORE:
            change = difference(solved, [before[temperature]])
            line["change"] = f"{change.mean:+.3f} ± {change.over_problems:.3f}"
            if len(solved) > 1:
                line["± over seeds"] = over_seeds(change)
        lines.append(line)
    return lines


class Difference(NamedTuple):
    """Accuracy of one model minus another's on the same problems.

    Attributes:
        mean: over seeds and problems.
        by_seed: of each seed, the mean over problems.
        over_problems: half the width of a 95% interval over problems, for these trained models.
        over_seeds: the same over seeds, on these problems, by Student's t; NaN for fewer than two, and where
            all came out alike: a few equal seeds do not say that another would be equal, too.
    """

    mean: float
    by_seed: list[float]
    over_problems: float
    over_seeds: float


def difference(solved: Shares, baseline: Shares) -> Difference:
    """Two models' right answers, ``[seed][problem]``, paired by problem and, where both have seeds, by seed.

    Args:
        solved: the share of right answers to each problem, for every seed.
        baseline: the same of the other model; one row serves every seed.

    Example:
        >>> found = difference([[1.0, 0.5], [0.5, 0.5]], [[0.0, 0.5]])
        >>> found.mean, found.by_seed, round(found.over_seeds, 2)
        (0.375, [0.5, 0.25], 1.59)
    """
    starts = list(baseline) * (len(solved) if len(baseline) == 1 else 1)
    pairs = zip(solved, starts, strict=True)
    apart = [[one - other for one, other in zip(*pair, strict=True)] for pair in pairs]
    by_seed = [statistics.fmean(problems) for problems in apart]
    mean, over_problems = mean_and_margin([statistics.fmean(seeds) for seeds in zip(*apart, strict=True)])
    error = standard_error(by_seed) if len(by_seed) > 1 else 0.0
    over_seeds = t_bound(0.05, len(by_seed) - 1) * error if error > 1e-9 else math.nan
    return Difference(mean, by_seed, over_problems, over_seeds)


def over_seeds(change: Difference) -> str:
    """The margin over seeds in a table; ``equal`` where all seeds came out alike."""
    return "equal" if math.isnan(change.over_seeds) else f"{change.over_seeds:.3f}"


def write_csv(path: Path, rows: Rows) -> None:
    """Every row with every column; ``solved`` as numbers separated by spaces."""
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

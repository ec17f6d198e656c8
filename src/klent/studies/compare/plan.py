"""The runs of a comparison, and which of them are already done."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from klent.config import Recipe, load_recipe
from klent.errors import ConfigError
from klent.io.files import read_jsonl
from klent.kit.statistics import mean
from klent.kit.text import duration, plural
from klent.runs.plan import make_plan
from klent.runs.record import wall_seconds

METHODS = (
    "grpo",
    "clip_higher",
    "clip_cov",
    "kl_cov",
    "top20",
    "random20",
    "bottom80",
    "clip_wide",
    "thermostat",
)
"""Compared by default. Two are controls: random tokens, and a wide clip alone."""

State = Literal["new", "started", "done"]


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: its name, also of its folders, and what it changes in the recipe."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One arm under one seed."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def state(self) -> State:
        """``done`` if the last step was trained and evaluated, by what is in the folder now."""
        if not (self.folder / "config.yaml").is_file():
            return "new"
        evaluated = any(row["step"] == self.recipe.steps for row in read_jsonl(self.folder / "eval.jsonl"))
        return "done" if evaluated and (self.folder / "final").is_dir() else "started"


@dataclass(frozen=True)
class ComparisonPlan:
    """Every run of a comparison, in order: seed by seed, so a stop leaves whole blocks.

    Attributes:
        name: of the comparison and its folder.
        folder: holds its runs and its page.
        arms: the others are compared with the first.
        seeds: one run of every arm under each.
        runs: all of them.
    """

    name: str
    folder: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    runs: tuple[PlannedRun, ...]


def plan_comparison(
    recipe: str, overrides: Sequence[str], over: Sequence[str], seeds: int, runs: Path
) -> ComparisonPlan:
    """Resolve every recipe of a comparison and check existing folders; nothing is written.

    Args:
        recipe: a recipe file, or the name of a shipped one.
        overrides: ``KEY=VALUE`` for every arm; ``name=`` names the comparison.
        over: ``KEY=V1,V2`` options, whose product gives the arms; none = the shipped methods.
        seeds: how many, counted from the recipe's own.
        runs: folder that contains the comparison's folder.

    Raises:
        ConfigError: an invalid recipe, two identical arms, or a run in the folder that was made with other
            settings.
    """
    base = load_recipe(recipe, overrides)
    named = any(word.startswith("name=") for word in overrides)
    name = base.name if named else f"{base.name}-compare"
    folder = runs / name
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is a single run; give the comparison another name: name={name}-compare")
    arms = make_arms(over or [f"method={','.join(METHODS)}"])
    planned = []
    for seed in range(base.seed, base.seed + seeds):
        for arm in arms:
            run_name = f"{arm.name}-seed{seed}"
            settings = [*overrides, *arm.overrides, f"seed={seed}", f"name={run_name}"]
            planned.append(PlannedRun(arm.name, seed, load_recipe(recipe, settings), folder / run_name))
    _refuse_unmeasured(planned[0].recipe)
    _refuse_same(planned[: len(arms)])
    _refuse_changed(planned)
    return ComparisonPlan(name, folder, arms, tuple(range(base.seed, base.seed + seeds)), tuple(planned))


def make_arms(over: Sequence[str]) -> tuple[Arm, ...]:
    """The product of ``KEY=V1,V2`` options; an arm is named after its values.

    >>> [arm.name for arm in make_arms(["method=grpo,rloo", "optimizer.lr=1e-5,2e-5"])]
    ['grpo-lr1e-5', 'grpo-lr2e-5', 'rloo-lr1e-5', 'rloo-lr2e-5']
    """
    choices = []
    for option in over:
        key, equals, values = option.partition("=")
        parts = split_values(values)
        if not equals or not key or not all(parts):
            raise ConfigError(f"--over {option}: write --over KEY=VALUE,VALUE such as method=grpo,rloo")
        if key in ("name", "seed"):
            reason = "use --seeds for the number of seeds" if key == "seed" else "runs are named by their arm"
            raise ConfigError(f"--over {option}: `{key}` cannot be compared over; {reason}")
        choices.append([(key, value) for value in parts])
    arms = []
    for chosen in itertools.product(*choices):
        name = "-".join(_arm_word(key, value, alone=len(choices) == 1) for key, value in chosen)
        arms.append(Arm(name, tuple(f"{key}={value}" for key, value in chosen)))
    if twice := {arm.name for arm in arms if sum(a.name == arm.name for a in arms) > 1}:
        raise ConfigError(f"--over: two arms would be called {min(twice)}; give every value once")
    return tuple(arms)


def split_values(text: str) -> list[str]:
    """Values separated by commas; a comma inside brackets or quotes is part of a value.

    >>> split_values("grpo,{a: 1, b: 2},'x,y'")
    ['grpo', '{a: 1, b: 2}', "'x,y'"]
    """
    parts, depth, quote, current = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()]


def _arm_word(key: str, value: str, *, alone: bool) -> str:
    """One value as part of an arm's name: a method's file by its stem, a number with its key."""
    word = value.rsplit("/", 1)[-1].removesuffix(".yaml") if key == "method" else value
    word = re.sub(r"[^A-Za-z0-9._-]+", "_", word).strip("._-") or "empty"
    is_name = bool(re.match(r"[A-Za-z]", word)) and word not in ("true", "false", "null")
    return word if is_name and (alone or key == "method") else f"{key.rsplit('.', 1)[-1]}{word}"


def _refuse_unmeasured(recipe: Recipe) -> None:
    if recipe.eval is None or not (recipe.reward or recipe.task.pays) or not recipe.rollout.sampled:
        missing = "`eval` section" if recipe.eval is None else "`reward`"
        if not recipe.rollout.sampled:
            missing = "sampled completions (rollout.engine is dataset)"
        raise ConfigError(
            f"recipe has no {missing}, which is needed to compare arms by held-out reward; set it"
        )
    if recipe.eval.early_stop is not None:
        raise ConfigError("eval.early_stop would give the arms different numbers of steps; set it to null")


def _refuse_same(block: Sequence[PlannedRun]) -> None:
    """Refuse two arms whose recipes differ in nothing but the method's name."""
    for one, other in itertools.combinations(block, 2):
        if not set(differences(one.recipe, other.recipe)) - {"name", "method"}:
            raise ConfigError(
                f"arms {one.arm} and {other.arm} resolve to the same recipe: they set the same values, or "
                "the recipe overrides both. Remove one of them, or remove the setting from the recipe"
            )


def _refuse_changed(planned: Sequence[PlannedRun]) -> None:
    for run in planned:
        if run.state == "new":
            continue
        there = load_recipe(run.folder / "config.yaml")
        changed = differences(there, run.recipe.dated(there.task.clock))
        if changed:
            listed = "; ".join(f"{key}: {old} there, {new} now" for key, (old, new) in changed.items())
            raise ConfigError(
                f"{run.folder} was made with other settings ({listed}). Use those settings, give this "
                "comparison another name=..., or move the folder away"
            )


def differences(one: Recipe, other: Recipe) -> dict[str, tuple[str, str]]:
    """Dotted keys whose values differ, with both values as text."""
    left, right = flat(one.model_dump(mode="json")), flat(other.model_dump(mode="json"))
    keys = [*left, *(key for key in right if key not in left)]
    return {
        key: (left.get(key, "absent"), right.get(key, "absent"))
        for key in keys
        if left.get(key) != right.get(key)
    }


def flat(value: object, path: str = "") -> dict[str, str]:
    """Every value of a nested mapping by its dotted key, as JSON."""
    if isinstance(value, dict) and value:
        parts = [flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {path: json.dumps(value, ensure_ascii=False)}


def describe(plan: ComparisonPlan) -> list[str]:
    """The plan in lines: arms, runs, work, and the time once a run is finished."""
    recipe = plan.runs[0].recipe
    assert recipe.eval is not None
    states = [run.state for run in plan.runs]
    unfinished = [run for run, state in zip(plan.runs, states, strict=True) if state != "done"]
    completions = sum(run.recipe.steps * make_plan(run.recipe).completions for run in unfinished)
    lines = [
        f"{plural(len(plan.arms), 'arm')}, compared with the first: {', '.join(a.name for a in plan.arms)}",
        f"{plural(len(plan.seeds), 'seed')}: {', '.join(map(str, plan.seeds))}; arms share a seed's data",
        f"each run: {plural(recipe.steps, 'step')} of {recipe.prompts_per_step} × "
        f"{plural(recipe.group_size, 'completion')}, {plural(recipe.eval.problems, 'held-out problem')} × "
        f"{recipe.eval.samples}",
        f"{plural(len(plan.runs), 'run')}: {states.count('done')} done, {states.count('started')} started, "
        f"{states.count('new')} new; {plural(completions, 'completion')} to sample and train on",
        f"time: {estimate(plan, len(unfinished))}",
    ]
    budget = ("steps", "prompts_per_step", "group_size", "rollout.max_tokens", "update.epochs")
    for key in budget:
        values = list(dict.fromkeys(flat(run.recipe.model_dump(mode="json"))[key] for run in plan.runs))
        if len(values) > 1:
            lines.append(f"the arms have different budgets: {key} is {', '.join(values)}")
    return lines


def estimate(plan: ComparisonPlan, unfinished: int) -> str:
    """How long the unfinished runs will take, from the mean of the finished ones."""
    if not unfinished:
        return "all runs are finished"
    recorded = [wall_seconds(run.folder) for run in plan.runs if run.state == "done"]
    seconds = [value for value in recorded if value is not None]
    if not seconds:
        return "unknown until one run is done (one alone: add --seeds 1 --over with a single value)"
    return f"about {duration(unfinished * mean(seconds))} for the {plural(unfinished, 'remaining run')}"

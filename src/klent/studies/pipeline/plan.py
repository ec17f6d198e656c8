"""The runs of a study, and which of them are already done."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klent.config import load_recipe
from klent.config.layers import Layer
from klent.config.load import recipe_of
from klent.config.study import Judge, Label, StageFile, Study, judge_of, read_study, values_of
from klent.errors import ConfigError
from klent.kit.text import plural
from klent.runs.plan import make_plan
from klent.studies.compare.plan import PlannedRun, State, differences

LABEL = "label.json"  # how the pairs of a stage were labelled


@dataclass(frozen=True)
class Block:
    """One seed of a study.

    Attributes:
        seed: of its runs.
        runs: stage by stage, in an order in which each comes after those that it needs.
        judge: with the folders of this seed's stages.
        base: the folder or name of the model that stages are compared with.
    """

    seed: int
    runs: tuple[PlannedRun, ...]
    judge: Judge
    base: str


@dataclass(frozen=True)
class StudyPlan:
    """Every run of a study, seed by seed.

    Attributes:
        study: the file.
        folder: holds the runs and the page.
        blocks: one per seed.
    """

    study: Study
    folder: Path
    blocks: tuple[Block, ...]

    def judged(self, stage: str) -> bool:
        """Whether a stage is measured by the judge."""
        return next(one.judged for one in self.study.stages if one.name == stage)


def plan_study(study: Path, overrides: Sequence[str], seeds: int, runs: Path) -> StudyPlan:
    """Read a study and check every recipe of it; nothing is written.

    Args:
        study: the file.
        overrides: ``KEY=VALUE``, with keys such as ``stages.ppo.steps`` and ``common.model``.
        seeds: runs of each stage, with the seeds 0, 1, ...
        runs: folder that contains the study's folder.

    Raises:
        ConfigError: a recipe is invalid, or a run in the folder was made with other settings.
    """
    read = read_study(study, overrides)
    folder = runs / read.name
    if (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} is a single run; give the study another name: name={read.name}-study")
    plan = StudyPlan(read, folder, tuple(_block(read, folder, seed) for seed in range(seeds)))
    for block in plan.blocks:
        for stage, run in zip(read.stages, block.runs, strict=True):
            _refuse_changed(run)
            _refuse_changed_labels(run, stage.label)
            _refuse_judged_prompts(run, stage, block.judge)
    return plan


def _block(study: Study, folder: Path, seed: int) -> Block:
    names = {stage.name: f"{stage.name}-seed{seed}" for stage in study.stages}
    made = {stage.name: "pairs.jsonl" if stage.label else "final" for stage in study.stages}
    models = {stage: folder / name / made[stage] for stage, name in names.items()}
    runs = []
    for stage in study.stages:
        fixed = Layer({"name": names[stage.name], "seed": seed}, source="study")
        try:
            recipe = recipe_of(values_of(stage, models), fixed, name=names[stage.name])
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from error
        runs.append(PlannedRun(stage.name, seed, recipe, folder / names[stage.name]))
    base = study.base.strip("{}")
    return Block(seed, tuple(runs), judge_of(study, models), str(models.get(base, study.base)))


def state_of(run: PlannedRun) -> State:
    """``done`` where the stage has its model, or its pairs; it need not have an evaluation of its own."""
    if (run.folder / "final").is_dir() or (run.folder / "pairs.jsonl").is_file():
        return "done"
    begun = any((run.folder / name).is_file() for name in ("config.yaml", "pairs.jsonl.part"))
    return "started" if begun else "new"


def _refuse_changed(run: PlannedRun) -> None:
    """A run that is there was made with these settings, but for what a run may change."""
    if not (run.folder / "config.yaml").is_file():
        return
    there = load_recipe(run.folder / "config.yaml")
    changed = differences(there, run.recipe.dated(there.task.clock))
    if changed:
        listed = "; ".join(f"{key}: {old} there, {new} now" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{run.folder} was made with other settings ({listed}). Use those settings, give this study another "
            "name=..., or move the folder away"
        )


def _refuse_changed_labels(run: PlannedRun, label: Label | None) -> None:
    """Pairs that are there were made with these settings."""
    file = run.folder / LABEL
    if label is None or not file.is_file():
        return
    there, now = json.loads(file.read_text(encoding="utf-8")), label.model_dump(mode="json")
    changed = [
        f"label.{key}: {there.get(key)} there, {value} now"
        for key, value in now.items()
        if there.get(key) != value
    ]
    if changed:
        raise ConfigError(
            f"{run.folder} was made with other settings ({'; '.join(changed)}). Use those settings, give this study "
            "another name=..., or move the folder away"
        )


def _refuse_judged_prompts(run: PlannedRun, stage: StageFile, judge: Judge) -> None:
    """A stage must not train on the prompts that it is judged on.

    Raises:
        ConfigError: both take them from one file, and do not hold out the same.
    """
    task, settings = run.recipe.task, run.recipe.eval
    ours = task.split_of(settings.problems if settings else 0)
    for name, judged in judge.on.items():
        theirs = judged.task.split_of(judged.problems)
        of_another_file = any(theirs[3:])
        if ours and theirs and ours[0] == theirs[0] and ours != theirs and not of_another_file:
            raise ConfigError(
                f"stage {stage.name} trains on {task.source}, and judge.on.{name} holds {theirs[1]} prompts of it "
                "out, but not the same ones as the stage: it would be judged on what it was trained on. Give both "
                f"the same task.heldout (here {ours[1]} and {theirs[1]}) and task.seed, or give the judge "
                "task.heldout_data"
            )


def describe(plan: StudyPlan) -> list[str]:
    """The plan in lines: stages with what they start from, what judges them, and the work."""
    lines = []
    for stage, run in zip(plan.study.stages, plan.blocks[0].runs, strict=True):
        start = f", after {' and '.join(stage.needs)}" if stage.needs else ""
        work = (
            f"{plural(run.recipe.steps, 'step')} of {plural(make_plan(run.recipe).completions, 'completion')}"
        )
        method = run.recipe.method or "own objective"
        if stage.label is not None:
            work, method = f"{plural(stage.label.pairs, 'pair')} of answers", "labels"
        lines.append(f"{stage.name}: {method} on {run.recipe.task.source}, {work}{start}")
    judge = plan.blocks[0].judge
    on = ", ".join(f"{name} ({one.problems} x {one.samples})" for name, one in judge.on.items())
    extra = [f"{plural(judge.prose, 'paragraph')} of prose"] if judge.prose else []
    extra += [f"the texts {name}" for name in judge.texts]
    extra += ["distance of the weights"] if judge.distance else []
    lines.append(f"judged, against {plan.study.base.strip('{}')}: {', '.join([on, *extra])}")
    states = [state_of(run) for block in plan.blocks for run in block.runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "started", "new"))
    lines.append(f"{plural(len(plan.blocks), 'seed')}, {plural(len(states), 'run')}: {counts}")
    return lines

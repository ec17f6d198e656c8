"""Trains the stages of a study: finished ones are skipped, stopped ones resumed, and all are judged."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from klent.config import dump_recipe
from klent.config.study import Label
from klent.errors import KlentError, RunError
from klent.io.files import write_atomic
from klent.kit.text import plural
from klent.studies.compare.plan import PlannedRun
from klent.studies.compare.run import ShortConsole, Stopped
from klent.studies.label import Labels, label_pairs
from klent.studies.pipeline.judge import Judging
from klent.studies.pipeline.page import write_page
from klent.studies.pipeline.plan import LABEL, Block, StudyPlan, state_of

JUDGING = "judging "


def run_study(plan: StudyPlan, *, command: str, console: Console) -> Path:
    """Train and judge every stage that is not done yet; the page is written after each seed.

    A stage that fails is reported, those that need it are left out, and the others go on. A stage is judged once
    every stage that ``judge`` names is trained.

    Args:
        plan: the runs.
        command: the command line that repeats or continues the study.
        console: receives progress messages.

    Returns:
        The page.

    Raises:
        Stopped: Ctrl-C; the current step was finished and saved.
        RunError: one or more stages failed, or could not be judged; the others are done and on the page.
    """
    failed: dict[str, str] = {}
    unjudged: dict[str, str] = {}
    for block in plan.blocks:
        try:
            _run_block(plan, block, failed, unjudged, command, console)
        except Stopped:
            write_page(plan, command=command, failed=failed | unjudged)
            raise
        except KeyboardInterrupt:
            raise Stopped(f"stopped at once; continue with: {command}") from None
        write_page(plan, command=command, failed=failed | unjudged)
    page = write_page(plan, command=command, failed=failed | unjudged)
    if failed or unjudged:
        total = sum(len(block.runs) for block in plan.blocks)
        said = [f"{len(failed)} of {total} runs failed ({', '.join(failed)})"] if failed else []
        said += (
            [f"not judged: {', '.join(name.removeprefix(JUDGING) for name in unjudged)}"] if unjudged else []
        )
        raise RunError(f"{'; '.join(said)}; the others are in {page}")
    return page


def _run_block(
    plan: StudyPlan,
    block: Block,
    failed: dict[str, str],
    unjudged: dict[str, str],
    command: str,
    console: Console,
) -> None:
    """One seed: each stage, and what is waiting to be judged as soon as the judge has all that it names."""
    folders = {run.arm: run.folder for run in block.runs}
    bases = {str(folder / "final") for folder in folders.values()}
    own = [] if block.base in bases else [(block.base, plan.folder / f"base-seed{block.seed}")]
    judging = Judging(block, block.runs[0].recipe, lambda line: console.print(Text(f"  {line}", style="dim")))
    waiting: list[tuple[str, Path]] = []

    def fail(name: str, error: KlentError, into: dict[str, str]) -> None:
        into[name] = str(error)
        console.print(Text(f"  {name} failed: {error}", style="red"), soft_wrap=True)

    def judge(models: list[tuple[str, Path]]) -> None:
        for model, folder in models:
            try:
                judging.measure(model, folder)
            except KlentError as error:
                fail(f"{JUDGING}{folder.name}", error, unjudged)

    def lacking() -> list[str]:
        return [name for name in plan.study.judge_needs if state_of(by_name[name]) != "done"]

    by_name = {run.arm: run for run in block.runs}
    for stage, run in zip(plan.study.stages, block.runs, strict=True):
        missing = [need for need in stage.needs if folders[need].name in failed]
        if missing:
            failed[run.folder.name] = f"{missing[0]}, from which it starts, failed"
            continue
        try:
            if stage.label is not None:
                _label(run, stage.label, console)
            else:
                _train(run, command, console)
        except Stopped:
            raise
        except KlentError as error:
            fail(run.folder.name, error, failed)
            continue
        if stage.judged:
            waiting.append((str(run.folder / "final"), run.folder))
        if not lacking():
            judge(waiting)
            waiting.clear()
    if not lacking():
        judge(own)
    else:
        reason = f"{lacking()[0]}, which the judge needs, failed"
        unjudged.update({f"{JUDGING}{folder.name}": reason for _, folder in [*own, *waiting]})


def _label(run: PlannedRun, label: Label, console: Console) -> None:
    """Make the pairs of a stage; they are the stage's own, so its recipe is written beside them first."""
    out = run.folder / "pairs.jsonl"
    if out.is_file():
        console.print(Text(f"{run.folder.name}: already complete", style="dim"))
        return
    console.print(f"{run.folder.name}: {plural(label.pairs, 'pair')}")
    write_atomic(run.folder / LABEL, label.model_dump_json(indent=2) + "\n")
    write_atomic(run.folder / "config.yaml", dump_recipe(run.recipe))
    label_pairs(run.recipe, Labels(label.pairs, label.noise, label.flip), out=out)


def _train(run: PlannedRun, command: str, console: Console) -> None:
    """Train one stage to its end.

    Raises:
        Stopped: Ctrl-C.
    """
    label = run.folder.name
    if state_of(run) == "done":
        console.print(Text(f"{label}: already complete", style="dim"))
        return
    from klent.runs.train import train

    short = ShortConsole(console, label)
    train(run.recipe, run.folder, command=command, resume=state_of(run) == "started", console=short)
    if state_of(run) != "done":
        raise Stopped(f"stopped in {label}; it is saved; continue with: {command}")

"""``klent compare``: methods side by side, under one budget, with seeds and controls."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from klent.cli.common import Debug, Runs, out, run_or_log
from klent.errors import ConfigError

_SEEDS = 3


def compare(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN",
            help="A recipe, or the first of several runs that exist.",
            show_default=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE|RUN",
            help="Recipe keys to change, dotted: optimizer.lr=1e-5; or the other runs.",
            show_default=False,
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=V1,V2",
            help="What to compare; repeat it for every combination. The others are compared with the first. "
            "Default: the shipped methods with their controls.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of runs per arm.")] = _SEEDS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs and their estimated time; write nothing.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Rewrite the page from the finished runs.")
    ] = False,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="Of runs that exist: draw this one too; repeat it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", help="Of runs that exist: the page; RUNS/compare.html.")
    ] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Compare methods or settings: same data, same budget, several seeds, one page. Or draw existing
    runs in one set of plots.

    Runs are in RUNS/NAME-compare/ARM-seedN (NAME is the recipe's; name=... sets the folder's whole name).
    Finished runs are skipped and stopped ones are resumed, so the same command, or one with more seeds or
    arms, continues. Ctrl-C finishes the step, saves and stops.

    The page RUNS/NAME-compare/compare.html has curves, final pass@1 and pass@k, entropy, KL to the base model
    and time, and says which differences, if any, are more than noise.

    ```
    klent compare quickstart --over method=grpo,rloo,dr_grpo --seeds 3
    klent compare my.yaml --over method=grpo,kl_cov --over optimizer.lr=1e-5,2e-5 eval.samples=8
    klent compare quickstart --dry-run
    ```

    If you give runs instead of a recipe, it trains nothing. It writes RUNS/compare.html with their curves in one set
    of plots, their results, and how their recipes differ. Runs may be unfinished and of any recipe; log folders of
    TRL and verl work too.

    ```
    klent compare runs/quickstart runs/rloo
    klent compare quickstart rloo ../trl-output --metric grad/norm --out overlay.html
    ```
    """
    others = [word for word in overrides or [] if "=" not in word]
    if others:
        _refuse_training_options(over, seeds, dry_run, report_only, [recipe, *(overrides or [])])
        _overlay([recipe, *others], metric or [], output, runs)
        return
    if metric or output:
        raise ConfigError("--metric and --out compare existing runs; name at least two run folders")
    from klent.studies.compare.plan import describe, plan_comparison

    if dry_run and report_only:
        raise ConfigError("--dry-run writes nothing and --report-only writes the page; choose one")
    plan = plan_comparison(recipe, overrides or [], over or [], seeds, runs)
    command = _command(recipe, overrides or [], over or [], seeds, runs)
    if dry_run:
        for line in describe(plan):
            out.print(line, soft_wrap=True)
        for run in plan.runs:
            out.print(f"  {run.state:<8} {run.folder}", soft_wrap=True)
        out.print(f"would write {plan.folder}; this was a dry run", soft_wrap=True)
        return
    if report_only:
        from klent.studies.compare.page import write_page

        out.print(f"page: {write_page(plan, command=command)}", soft_wrap=True)
        return
    from klent.studies.compare.run import Stopped, run_comparison

    for line in describe(plan):
        out.print(line, soft_wrap=True)
    try:
        page = run_comparison(plan, command=command, console=out)
    except Stopped as stop:
        out.print(str(stop), style="yellow", soft_wrap=True)
        raise typer.Exit(130) from None
    out.print(f"page: {page}", style="bold", soft_wrap=True)


def _command(recipe: str, overrides: list[str], over: list[str], seeds: int, runs: Path) -> str:
    words = ["klent", "compare", recipe, *overrides]
    for option in over:
        words += ["--over", option]
    words += ["--seeds", str(seeds)]
    return shlex.join([*words, "--runs", str(runs)] if runs != Path("runs") else words)


def _overlay(names: list[str], metrics: list[str], output: Path | None, runs: Path) -> None:
    """Runs that exist on one page; nothing is trained."""
    from klent.studies.overlay.page import write_overlay

    folders = [run_or_log(Path(name), runs) for name in names]
    words = ["klent", "compare", *map(str, folders)]
    for name in metrics:
        words += ["--metric", name]
    words += ["--out", str(output)] if output else []
    target = output or runs / "compare.html"
    out.print(
        f"page: {write_overlay(folders, target, metrics=metrics, command=shlex.join(words))}",
        style="bold",
        soft_wrap=True,
    )


def _refuse_training_options(
    over: list[str] | None, seeds: int, dry_run: bool, report_only: bool, words: list[str]
) -> None:
    """Options and overrides of a comparison that trains, beside runs that exist."""
    given = [
        name
        for name, value in (("--over", over), ("--dry-run", dry_run), ("--report-only", report_only))
        if value
    ]
    given += [f"--seeds {seeds}"] if seeds != _SEEDS else []
    given += [word for word in words if "=" in word]
    if given:
        listed = [word for word in words if "=" not in word]
        raise ConfigError(
            f"{given[0]} is for training a recipe, and {' '.join(listed)} are existing runs; remove one of the two"
        )

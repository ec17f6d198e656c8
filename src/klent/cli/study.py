"""``klent study``: several stages from one file, one page."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from klent.cli.common import Debug, Overrides, Runs, out
from klent.kit.text import plural


def study(
    file: Annotated[
        Path,
        typer.Argument(metavar="STUDY", help="A shipped study, or a file (YAML).", show_default=False),
    ],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each stage.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and what is done; write nothing.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Rewrite the page from what has been judged.")
    ] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Train the stages of a study, judge each on the same problems, and write one page.

    A study is a file with `stages`. Each stage is a recipe that adds to `common`; `{STAGE}` stands for the result of
    another stage, so that a policy can start from an SFT model and get its reward from a reward model. `judge` says
    what is measured: rewards on named problems, exact KL to and from the base, English prose, and the distance of
    the weights.

    Runs are in RUNS/NAME/STAGE-seedN. Finished stages are skipped and stopped ones are resumed, so the same
    command, or one with more seeds, continues. Ctrl-C finishes the step, saves and stops. Overrides have the keys
    of the file: `stages.ppo.steps=20`, `common.model=./mine`.

    ```
    klent study rlhf --dry-run
    klent study my_study.yaml --seeds 3
    ```
    """
    from klent.config.load import find_study
    from klent.errors import ConfigError
    from klent.studies.pipeline.page import write_page
    from klent.studies.pipeline.plan import describe, plan_study
    from klent.studies.pipeline.run import Stopped, run_study

    if dry_run and report_only:
        raise ConfigError("--dry-run writes nothing and --report-only writes the page; choose one")
    plan = plan_study(find_study(file), overrides or [], seeds, runs)
    words = ["klent", "study", str(file), *(overrides or []), "--seeds", str(seeds)]
    command = shlex.join([*words, "--runs", str(runs)] if runs != Path("runs") else words)
    if report_only:
        out.print(f"page: {write_page(plan, command=command)}", soft_wrap=True)
        return
    for line in describe(plan):
        out.print(line, soft_wrap=True)
    if dry_run:
        out.print(f"would write {plan.folder}; this was a dry run", soft_wrap=True)
        return
    try:
        page = run_study(plan, command=command, console=out)
    except Stopped as stop:
        out.print(str(stop), style="yellow", soft_wrap=True)
        raise typer.Exit(130) from None
    out.print(f"page: {page}", style="bold", soft_wrap=True)


def label(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or a file.")],
    overrides: Overrides = None,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="How many pairs to make.")] = 256,
    noise: Annotated[
        float, typer.Option("--noise", help="Temperature of the choice, in units of reward; 0 = never wrong.")
    ] = 0.0,
    flip: Annotated[
        float, typer.Option("--flip", help="Share of labels that are reversed afterwards.")
    ] = 0.0,
    output: Annotated[Path, typer.Option("--out", help="JSON Lines file to write.")] = Path("pairs.jsonl"),
    debug: Debug = False,
) -> None:
    """Make preference pairs from a reward: two answers to each prompt, and which of them is better.

    The file can be used as `task.pairs`. With `--noise` labels are random: their probability is that of
    Bradley and Terry, sigmoid of the difference in reward over the noise. `--flip` reverses some labels. Use both to
    measure what wrong labels cost. If interrupted, the same command continues.

    ```
    klent label quickstart --pairs 200 --out pairs.jsonl
    klent train my_dpo.yaml task.pairs=pairs.jsonl
    ```
    """
    from klent.cli.common import err
    from klent.config import load_recipe
    from klent.errors import ConfigError
    from klent.studies.label import Labels, label_pairs

    if not output.name:
        raise ConfigError(f"--out {output} is a folder; name a file in it, such as pairs.jsonl")
    with err.status("loading") as status:
        rows = label_pairs(
            load_recipe(recipe, overrides or []),
            Labels(pairs, noise, flip),
            out=output,
            progress=lambda done, of: status.update(f"{done} of {of} pairs"),
        )
    wrong = sum(row["score_chosen"] < row["score_rejected"] for row in rows)
    out.print(
        f"wrote {plural(len(rows), 'pair')} to {output}; by the reward {plural(wrong, 'label')} "
        f"{'is' if wrong == 1 else 'are'} wrong",
        soft_wrap=True,
    )

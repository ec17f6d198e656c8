"""``klent select`` and ``klent controls``: prompts to learn from, and baselines that need no training."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from klent.cli.common import Debug, Overrides, Runs, err, out
from klent.errors import ConfigError
from klent.kit.text import plural

WIDE = 160  # columns of the table of arms
Target = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe, or a file.")]


def select(
    recipe: Target,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many training prompts to score.")] = 64,
    samples: Annotated[int, typer.Option(min=2, help="Completions per prompt.")] = 8,
    by: Annotated[
        str,
        typer.Option(help="pass_variance (needs labels), cluster_variance or entropy (do not), or random."),
    ] = "pass_variance",
    same: Annotated[
        str, typer.Option(help="When two answers are the same: text, number, math, meaning, or file.py:fn.")
    ] = "text",
    output: Annotated[Path, typer.Option("--out", help="JSON Lines file to write.")] = Path("ranked.jsonl"),
    debug: Debug = False,
) -> None:
    """Rank training prompts by how much they can teach.

    The file can be used as `task.data`, best prompt first. If interrupted, the same command continues.

    ```
    klent select quickstart --by cluster_variance --same number --out ranked.jsonl
    klent train one_shot_em task.data=ranked.jsonl task.only=[1] task.heldout=0.5
    ```
    """
    from klent.config import load_recipe
    from klent.studies.rank import rank_prompts

    if not output.name:
        raise ConfigError(f"--out {output} is a folder; name a file in it, such as ranked.jsonl")
    with err.status("loading") as status:
        rows = rank_prompts(
            load_recipe(recipe, overrides or []),
            prompts=prompts,
            samples=samples,
            by=by,
            out=output,
            same=same,
            progress=lambda done, of: status.update(f"{done} of {of} prompts"),
        )
    table = Table(box=None, pad_edge=False)
    names = ("id", "accuracy", "pass_variance", "cluster_variance", "entropy")
    for name in names:
        table.add_column(name)
    for row in rows[:10]:
        values = [row["selection"].get(name) for name in names]
        table.add_row(*[f"{v:.3f}" if isinstance(v, float) else str(v or "") for v in values])
    out.print(table)
    out.print(f"wrote {plural(len(rows), 'prompt')} to {output}, by {by}", soft_wrap=True)


def controls(
    recipe: Target,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train every arm with this many seeds.")] = 1,
    train: Annotated[
        bool,
        typer.Option("--train/--no-train", help="Train the arms, or only measure the model before training."),
    ] = True,
    rl: Annotated[
        str | None, typer.Option(help="Recipe that trains with right answers before and after this one.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help='Train this arm, e.g. "as written"; may be repeated. Or all.'),
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", help="CSV file; RUNS/NAME-controls.csv.")] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Measure what a recipe without labels gains, compared with baselines that need no training.

    Measured on held-out problems: the model before training, greedy, at lower temperatures and by majority
    vote; then the recipe as written, with random rewards, with right answers, and on another prompt. A
    recipe that uses no reward is also trained before and after one that does.

    ```
    klent controls empo --seeds 3
    klent controls one_shot_em --no-train
    klent controls one_shot_em --rl quickstart
    klent controls one_shot_em --seeds 3 --arm "as written" --arm "another prompt"
    ```
    """
    from klent.config import load_recipe
    from klent.studies.controls import run_controls, summary, write_csv

    settings = load_recipe(recipe, overrides or [])
    other = load_recipe(rl, []) if rl else None
    number = seeds if train else 0
    rows = run_controls(
        settings, runs=runs, seeds=number, say=lambda line: err.print(line), rl=other, names=arm
    )
    path = output or runs / f"{settings.name}-controls.csv"
    write_csv(path, rows)
    table = Table(box=None, pad_edge=False)
    lines = summary(rows)
    for name in lines[0]:
        table.add_column(name)
    for line in lines:
        table.add_row(*line.values())
    if not out.is_terminal:  # a column cut short would be lost in a file
        out.width = max(out.width, WIDE)
    out.print(table)
    out.print(f"wrote {path}", soft_wrap=True)

"""``klent data``: what klent reads in a file, before anything is trained on it."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.table import Table

from klent.cli.common import Debug, Overrides, out, show
from klent.errors import ConfigError
from klent.kit.text import plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from klent.config import FileSettings
    from klent.tasks.survey import Lengths, Survey

_MODEL = "smollm2-135m"


def data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|RECIPE",
            help="A .jsonl, .csv or .parquet file, a dataset id, or a recipe with its task.data.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many prompts to show in full.")] = 3,
    debug: Debug = False,
) -> None:
    """Show what klent reads in a file: columns, prompts as the model sees them, lengths, duplicates, refused rows.

    Nothing is trained and nothing is written. KEY=VALUE are keys of a recipe, `model` and those of `task`:
    `task.columns` gives columns the names that klent reads, `prompt`, `completion`, `answer`. The exit code is 1
    if a row would be refused, or if there is no row.

    ```
    klent data problems.csv task.columns.prompt=question task.columns.answer=result
    klent data chats.jsonl model=./my-model --rows 1
    klent data sft task.data=my.jsonl
    ```
    """
    from klent.kit.text import plural
    from klent.tasks.survey import survey

    section, model, needed = _wanted(source, overrides or [])
    tokenizer, note = _tokenizer(model)
    found = survey(section, tokenizer=tokenizer, needed=needed, first=rows)
    out.print(
        f"{section.source}: {plural(found.rows, 'row')}, read as task.{section.key}; {note}", soft_wrap=True
    )
    if found.columns:
        out.print(_columns(found, section))
    _show_prompts(found, tokenizer)
    _show_findings(found)
    if not found.rows:
        out.print(f"{source} has no rows: there is nothing to train on", style="red", soft_wrap=True)
    if found.refused or not found.rows:
        raise typer.Exit(1)
    if not _is_recipe(source) and section.key == "data" and (reward := _fitting_reward(found)):
        words = [
            "klent",
            "train",
            "quickstart",
            f"task.data={source}",
            *(overrides or []),
            f"reward={reward}",
        ]
        out.print(f"train on it: {shlex.join(words)}", soft_wrap=True)


def _wanted(source: str, overrides: list[str]) -> "tuple[FileSettings, str | None, tuple[str, ...]]":
    """The section to read, the model that reads it (None = the default), and the columns that each row must have."""
    from klent.config import load_recipe
    from klent.config.sections import read_task
    from klent.config.yaml_text import parse_overrides

    if _is_recipe(source):
        recipe = load_recipe(source, overrides)
        if not recipe.task.key:
            raise ConfigError(
                f"{source} reads no file: its task is {recipe.task.source}; see `klent train {source} --dry-run`"
            )
        needed = () if recipe.rollout.sampled else recipe.task.completions
        return cast("FileSettings", recipe.task), recipe.model, needed
    values = parse_overrides(overrides).values
    if others := sorted(values.keys() - {"task", "model"}):
        raise ConfigError(
            f"{others[0]}: beside a file only `model` and keys of `task` are taken; to set other keys, name a "
            f"recipe: klent data RECIPE task.data={source} {others[0]}=..."
        )
    task, model = values.get("task") or {}, values.get("model")
    if not isinstance(task, dict) or not isinstance(model, str | None):
        raise ConfigError("write task.KEY=VALUE, as in task.columns.prompt=question, and model=NAME")
    section = cast("FileSettings", read_task({_kind(source, task): source, **task}))
    return section, model, section.completions if section.key != "data" else ()


def _is_recipe(source: str) -> bool:
    from klent.config import recipes_folder

    return source.endswith((".yaml", ".yml")) or (
        not Path(source).exists() and (recipes_folder() / f"{source}.yaml").is_file()
    )


def _kind(source: str, task: Mapping[str, object]) -> str:
    """The key of ``task`` that a file of these columns is for: preferences, logged play, or prompts."""
    from klent.errors import DataError
    from klent.tasks.sources import open_rows

    subset = task.get("subset")
    rows = open_rows(
        source, str(task.get("split", "train")), str(subset) if subset else None, Path(), key="FILE"
    )
    columns = task.get("columns")
    renamed = set(columns) if isinstance(columns, dict) else set()
    try:
        names = {*rows[0], *renamed} if len(rows) else renamed
    except DataError:  # which the survey tells, with the other rows
        return "data"
    if {"chosen", "rejected"} <= names:
        return "pairs"
    return "trajectories" if "turns" in names or {"messages", "rewards"} <= names else "data"


def _tokenizer(model: str | None) -> "tuple[PreTrainedTokenizerBase | None, str]":
    """The tokenizer of the model that is asked for, else of the default where it is on this machine."""
    from klent.models.load import load_tokenizer
    from klent.models.pull import pulled

    if model is None and pulled(_MODEL) is None:
        return None, "no tokens are counted: name a model with model=FOLDER"
    name = model or _MODEL
    return load_tokenizer(name), f"tokens and chat template of {name}"


def _columns(found: "Survey", section: "FileSettings") -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("column", "values", "filled", "longest", "first"):
        table.add_column(title, no_wrap=title != "first", overflow="ellipsis")
    for name, column in found.columns.items():
        old = section.columns.get(name)
        shown = json.dumps(column.example, ensure_ascii=False, default=str)
        table.add_row(
            name if old in (None, name) else f"{name} (in the file: {old})",
            ", ".join(column.kinds),
            f"{column.filled:,} of {found.rows:,}",
            plural(column.longest, "character") if column.longest else "",
            shown if len(shown) <= 60 else f"{shown[:57]}...",
        )
    return table


def _show_prompts(found: "Survey", tokenizer: "PreTrainedTokenizerBase | None") -> None:
    from klent.models.chat import render_prompt
    from klent.streams.prompt import text_of

    for prompt in found.first:
        out.print()
        if tokenizer is None:
            said = prompt.prompt
            out.print(prompt.id, style="bold")
            show(said if isinstance(said, str) else "\n".join(text_of(m.get("content")) for m in said))
        else:
            ids = render_prompt(tokenizer, prompt.prompt, prompt.template)
            out.print(
                f"{prompt.id}, {plural(len(ids), 'token')} as the model reads them",
                style="bold",
                soft_wrap=True,
            )
            show(str(tokenizer.decode(ids)))
        for name in ("answer", "solution", "completion", "chosen", "rejected"):
            if (value := prompt.columns.get(name)) is not None:
                out.print(f"{name}: ", style="bold", end="")
                show(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if found.first:
        out.print()
    plain = bool(found.first) and isinstance(found.first[0].prompt, str)
    if plain and tokenizer is not None and tokenizer.chat_template:
        out.print(
            "prompts that are text are continued as they stand, without the chat template; task.system='...' makes "
            "them messages of the user",
            soft_wrap=True,
        )


def _show_findings(found: "Survey") -> None:
    if found.prompt_tokens:
        out.print(f"tokens per prompt: {_lengths(found.prompt_tokens, found.rows)}", soft_wrap=True)
    for name, lengths in found.answer_tokens.items():
        out.print(f"tokens per {name}: {_lengths(lengths, found.rows)}", soft_wrap=True)
    if found.repeated:
        listed = ", ".join(f"{place} (as {earlier})" for place, earlier in found.repeats[:5])
        more = ", ..." if found.repeated > 5 else ""
        have = "has" if found.repeated == 1 else "have"
        out.print(
            f"duplicates: {plural(found.repeated, 'row')} {have} the prompt of an earlier one: {listed}{more}",
            soft_wrap=True,
        )
    else:
        out.print("duplicates: none")
    if found.refused:
        out.print(f"refused: {plural(found.refused, 'row')}", style="red")
        for reason in found.reasons:
            out.print(f"  {reason}", soft_wrap=True)
        if found.refused > len(found.reasons):
            out.print(f"  and {found.refused - len(found.reasons):,} more")
    else:
        out.print("refused: none")


def _lengths(lengths: "Lengths", rows: int) -> str:
    some = f"; counted in {lengths.counted:,} rows spread over all" if lengths.counted < rows // 2 else ""
    return (
        f"median {lengths.median:,}, 95% have at most {lengths.most:,}, longest {lengths.longest:,} "
        f"({lengths.place}){some}"
    )


def _fitting_reward(found: "Survey") -> str | None:
    """A shipped reward that reads the answers of this file; None where there are none."""
    from klent.tasks.verifiers import find_last_number, gsm8k

    answers = [prompt.columns.get("answer") for prompt in found.first]
    if not answers or any(answer is None for answer in answers):
        return None
    if any("####" in str(answer) for answer in answers):
        return "gsm8k"
    numbers = gsm8k(answers, [str(answer) for answer in answers], answer=answers)
    if None not in numbers:
        return "last_number"
    return "math_verify" if all(find_last_number(str(a)) is not None for a in answers) else "exact"

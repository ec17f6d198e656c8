"""``klent recipes``, ``models`` and ``doctor``: what is available, and what is missing."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from klent.cli.common import Debug, Overrides, Runs, out, print_yaml
from klent.errors import ConfigError, RunError
from klent.io.files import read_text

if TYPE_CHECKING:
    from klent.runs.doctor import Check

recipes = typer.Typer(no_args_is_help=True, help="List, show and copy the shipped recipes.")
models = typer.Typer(no_args_is_help=True, help="List and download models with a short name.")


@recipes.command("ls")
def recipes_ls(debug: Debug = False) -> None:
    """List the shipped recipes and studies, and the methods that they can name.

    ```
    klent recipes ls
    ```
    """
    from klent.config import recipes_folder
    from klent.config.load import STUDIES

    folder = recipes_folder()
    for title, files in (
        ("recipes", folder.glob("*.yaml")),
        ("studies", (folder / STUDIES).glob("*.yaml")),
        ("methods", (folder / "methods").glob("*.yaml")),
    ):
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        for file in sorted(files):
            table.add_row(file.stem, file.read_text().splitlines()[0].lstrip("# "))
        out.print(table)


@recipes.command("show")
def recipes_show(
    name: Annotated[str | None, typer.Argument(help="A recipe, study or method.", show_default=False)] = None,
    fields: Annotated[bool, typer.Option("--fields", help="Print every key of a recipe.")] = False,
    debug: Debug = False,
) -> None:
    """Print a shipped recipe or method, or every key with its default and meaning.

    ```
    klent recipes show quickstart
    klent recipes show grpo
    klent recipes show --fields
    ```
    """
    if fields:
        _show_fields()
    elif name is None:
        raise ConfigError("name a recipe (`klent recipes ls`), or pass --fields for every key")
    else:
        print_yaml(read_text(_recipe_or_method(name)))


@recipes.command("cp")
def recipes_cp(
    name: Annotated[str, typer.Argument(help="A recipe, study or method.", show_default=False)],
    destination: Annotated[
        Path | None, typer.Argument(help="File or folder; default NAME.yaml in the working folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    debug: Debug = False,
) -> None:
    """Copy a shipped recipe and its data to a file of your own.

    ```
    klent recipes cp quickstart mine.yaml
    ```
    """
    from klent.config.load import STUDIES

    source = _recipe_or_method(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if (target.exists() or target.is_symlink()) and not force:
        raise RunError(f"{target} exists; pass --force to overwrite it, or another name")
    if target.is_symlink():
        raise RunError(f"{target} is a symbolic link, and what it points to would be overwritten; remove it")
    copies = _data_files(source, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    for data, copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, copy)
        out.print(f"wrote {copy}", soft_wrap=True)
    verb = "study" if source.parent.name == STUDIES else "train"
    out.print(f"wrote {target}; train it with: klent {verb} {target}", soft_wrap=True)


@models.command("ls")
def models_ls(debug: Debug = False) -> None:
    """List the models with a short name, and the folders of their copies.

    `model` also takes a local folder or a hub id.

    ```
    klent models ls
    ```
    """
    from klent.models.pull import list_models

    table = Table(box=None, pad_edge=False)
    for column in ("name", "description", "download", "folder"):
        table.add_column(column)
    for model in list_models():
        folder = str(model.folder) if model.folder else f"klent models pull {model.alias}"
        table.add_row(model.alias, model.description, f"{model.download_mb} MB", folder)
    out.print(table)


@models.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="A name from `klent models ls`.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Download a model and convert it, once.

    ```
    klent models pull smollm2-135m
    ```
    """
    from klent.models.pull import pull

    pull(name, progress=lambda line: out.print(line, soft_wrap=True))


def doctor(
    overrides: Overrides = None,
    rollout: Annotated[
        str | None,
        typer.Option(help="A recipe: run three steps of it at rate 0, and compare sampler and trainer."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="A recipe: what it needs, and whether that is here.")
    ] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Show what this machine has, and what to install for what it lacks; or whether a recipe samples what it trains.

    With --recipe only what that recipe needs is looked at, and the exit code is 1 where something is missing.

    ```
    klent doctor
    klent doctor --recipe quickstart lora.rank=8
    klent doctor --rollout quickstart
    klent doctor --rollout my.yaml rollout.engine=vllm
    ```
    """
    if rollout is not None and recipe is not None:
        raise ConfigError("--recipe looks at what is installed, --rollout runs three steps; choose one")
    if overrides and rollout is None and recipe is None:
        raise ConfigError(
            f"{overrides[0]} changes a recipe, and none is named; write --recipe or --rollout RECIPE before it"
        )

    marks = {
        "ok": Text("ok", style="green"),
        "missing": Text("missing", style="red"),
        "fault": Text("fault", style="red"),
        "note": Text("-", style="yellow"),
    }
    checks = _examine(rollout, recipe, overrides or [], runs)
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row(marks[check.state], check.name, check.text)
    out.print(table)
    if any(check.state in ("missing", "fault") for check in checks):
        raise typer.Exit(1)


def _examine(rollout: str | None, recipe: str | None, overrides: list[str], runs: Path) -> "list[Check]":
    from klent.config import load_recipe
    from klent.runs.doctor import examine
    from klent.runs.needs import examine_recipe

    if rollout is not None:
        from klent.runs.rollout_check import examine_rollout

        return examine_rollout(load_recipe(rollout, overrides))
    return examine(runs) if recipe is None else examine_recipe(load_recipe(recipe, overrides))


def _data_files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """The data files beside a recipe and their places beside its copy; one that exists there is left alone.

    Raises:
        ConfigError: a place outside the folder of the copy, by ``..``, an absolute path or a symbolic link.
    """
    from klent.config.load import data_folder, data_paths
    from klent.config.yaml_text import read_layer

    files = []
    for path in data_paths(read_layer(source).values):
        data, copy = data_folder(source) / path, target.parent / path
        if not data.is_file() or copy.exists():
            continue
        if not copy.resolve().is_relative_to(target.parent.resolve()):
            raise ConfigError(
                f"{source}: its data, {path}, would be written outside {target.parent}, as {copy.resolve()}; "
                "copy recipe and data by hand"
            )
        files.append((data, copy))
    return files


def _recipe_or_method(name: str) -> Path:
    """A recipe, a study, or else a method; where both have the name, ``methods/NAME`` is the method."""
    from klent.config import find_recipe, recipes_folder
    from klent.config.load import STUDIES

    file = f"{name.removesuffix('.yaml')}.yaml"
    folders = ("", STUDIES, "methods")
    shipped = tuple(recipes_folder() / folder / file for folder in folders)
    return next((path for path in shipped if path.is_file()), None) or find_recipe(name)


def _show_fields() -> None:
    from klent.config import describe_fields

    table = Table(box=None, pad_edge=False)
    for column in ("key", "default", "meaning"):
        table.add_column(column, no_wrap=column == "key")
    for row in describe_fields():
        table.add_row(*row)
    out.print(table)

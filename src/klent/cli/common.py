"""What every verb shares: consoles, common options, and errors shown as messages."""

import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text
from typer.core import TyperGroup

from klent.errors import ConfigError, KlentError, RunError

out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)
_debug = False


class PlainErrors(TyperGroup):
    """Prints a KlentError as a plain message; any other error is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except KlentError as error:
            if _debug:
                traceback.print_exc()
            title = "recipe or option refused" if isinstance(error, ConfigError) else "stopped"
            err.print(Panel(Text(str(error)), title=title, title_align="left", border_style="red"))
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
        except KeyboardInterrupt:
            err.print("stopped", style="yellow")
            raise typer.Exit(130) from None


def _set_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


def print_yaml(text: str) -> None:
    """YAML in colours in a terminal, and as it is elsewhere."""
    if out.is_terminal:
        out.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        out.print(text, soft_wrap=True)


Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that contains the runs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Recipe keys to change, dotted: optimizer.lr=1e-5", show_default=False
    ),
]


def find_run(path: Path, runs: Path) -> Path | None:
    """The folder of a run, given as a path or as its name in ``runs``; None if there is no such run."""
    return next((folder for folder in (path, runs / path) if (folder / "config.yaml").is_file()), None)


def run_folder(path: Path, runs: Path) -> Path:
    """As `find_run`, but a run that does not exist is an error that lists those that do."""
    folder = find_run(path, runs)
    if folder is None:
        names = sorted(item.parent.name for item in runs.glob("*/config.yaml"))
        raise RunError(
            f"{path} is not a run: it has no config.yaml; {runs} holds {', '.join(names) or 'no runs'}"
        )
    return folder


def final_model(run: Path) -> Path:
    """The folder of a finished run's model."""
    final = run / "final"
    if not final.is_dir():
        raise RunError(f"{run} has no final model yet; finish it with `klent resume {run}`")
    return final

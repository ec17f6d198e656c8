"""What every verb shares: consoles, common options, and errors shown as messages."""

import errno
import json
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text
from typer.core import TyperGroup

from klent.errors import ConfigError, KlentError, RunError
from klent.kit.terminal import SafeConsole, visible
from klent.kit.world import started

if TYPE_CHECKING:
    from klent.config import Recipe

out = SafeConsole(highlight=False, markup=False)
err = SafeConsole(stderr=True, highlight=False, markup=False)
_debug = False


class PlainErrors(TyperGroup):
    """Where errors become words.

    What klent raises on purpose is a message; so is what the machine refuses, whichever part asked: a disk that
    is full, a file that may not be written, memory. Any other error is a bug and keeps its traceback. A reader
    that went away (``klent ... | head -1``) ends the verb without a word.
    """

    def invoke(self, ctx: Any) -> object:
        try:
            return super().invoke(ctx)
        except (KlentError, OSError, MemoryError, RecursionError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            if _debug:
                traceback.print_exc()
            title = "recipe or option refused" if isinstance(error, ConfigError) else "stopped"
            if started() > 1:
                title = f"rank {os.environ.get('RANK', '?')}: {title}"
            text = Text(visible(_in_words(error)))
            err.print(Panel(text, title=title, title_align="left", border_style="red"))
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
        except KeyboardInterrupt:
            err.print("stopped", style="yellow")
            raise typer.Exit(130) from None


def _in_words(error: Exception) -> str:
    """The message of an error; of one that the machine raised, with what to do."""
    if isinstance(error, KlentError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory: {error or 'an allocation failed'}. Free some, or ask for less."
    if isinstance(error, RecursionError):
        return "a file or a value is nested too deeply to be read; flatten it. --debug shows where."
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    fix = _FIXES.get(error.errno or 0, "--debug shows where")
    return f"{names or 'a file or device'}: {error.strerror.lower()}. {fix[0].upper()}{fix[1:]}."


_FIXES = {
    errno.ENOSPC: "free space on that disk; a run continues with `klent resume`",
    errno.EDQUOT: "free space in your quota; a run continues with `klent resume`",
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EROFS: "choose a path on a disk that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EEXIST: "choose another name, or remove it",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
}


def show(text: str) -> None:
    """Print what a model wrote, line by line as it is, with nothing in it that the terminal would obey."""
    print(visible(text), flush=True)


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
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Do not ask before running code of the run that has changed since its start."),
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that contains the runs.")]
Beta = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="For a run that learnt values: how much they count in its player; default: its bellman.beta.",
    ),
]
Behaviour = Annotated[
    str | None,
    typer.Option(
        help="For a run that learnt values: the folder of the model of the data, if it has moved.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Recipe keys to change, dotted: optimizer.lr=1e-5", show_default=False
    ),
]


def find_run(path: Path, runs: Path) -> Path | None:
    """The folder of a run, given as a path or as its name in ``runs``; None if there is no such run."""
    return next((folder for folder in (path, runs / path) if (folder / "config.yaml").is_file()), None)


def model_and_run(name: str, runs: Path) -> tuple[str, Path | None]:
    """The model that a name means, and the run that made it: a run's name, its ``final/``, an exported step."""
    from klent.runs.folder import run_of

    run = find_run(Path(name), runs)
    if run is not None:
        return str(final_model(run)), run
    for folder in (Path(name), runs / name):
        if (run := run_of(folder)) is not None:
            return str(folder), run
    return name, None


def confirm_code(run: Path, yes: bool) -> None:
    """Show the code of a run that is not what the run was started with, before any of it is imported.

    Raises:
        ConfigError: it was not confirmed: by an answer in a terminal, by ``--yes`` elsewhere.
    """
    from klent.runs.code import changed_code

    changes = changed_code(run)
    if not changes:
        return
    err.print(f"code of {run} that differs from what it was started with:", style="yellow", soft_wrap=True)
    for line in changes:
        err.print(f"  {line}", soft_wrap=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{run} would run code that it was not started with: {'; '.join(changes)}. Read it, and pass --yes "
            "to run it"
        )
    if not typer.confirm("Run it?"):
        raise ConfigError(f"the code of {run} was not confirmed; nothing was run")


def refuse_tilt(name: str, run: Path | None, beta: float | None, behaviour: str | None) -> None:
    """Refuse settings of a player where there is none.

    Raises:
        ConfigError: ``name`` is no run that learnt values.
    """
    for option, value in (("--beta", beta), ("--behaviour", behaviour)):
        if value is not None and not learnt_values(run):
            has = "is no run" if run is None else "learnt none"
            raise ConfigError(
                f"{option} is for runs that learnt values (qsft, ilql), and {name} {has}; remove it"
            )


def recipe_of_run(
    run: Path, *, yes: bool, beta: float | None = None, behaviour: str | None = None
) -> "Recipe":
    """The recipe of a run whose model is sampled; where it learnt values, with what their player is told here.

    Raises:
        ConfigError: code that was not confirmed.
    """
    from klent.config import load_recipe

    confirm_code(run, yes)
    given = [] if beta is None else [f"bellman.beta={beta}"]
    given += [] if behaviour is None else [f"reference={json.dumps(behaviour)}"]
    return load_recipe(run / "config.yaml", given)


def learnt_values(run: Path | None) -> bool:
    """Whether a run learnt values, which are played and not sampled; nothing that it names is loaded."""
    from klent.config.load import read_values

    return run is not None and read_values(run / "config.yaml").get("bellman") is not None


def refuse_wordless(name: str, run: Path | None) -> None:
    """Refuse a run whose policy writes no text, before anything is loaded.

    Raises:
        ConfigError: it is a denoiser, a robot's policy or a reward model.
    """
    from klent.config.load import read_values

    policy = read_values(run / "config.yaml").get("policy") if run is not None else None
    kind = policy.get("kind", "causal_lm") if isinstance(policy, dict) else "causal_lm"
    if kind != "causal_lm":
        raise ConfigError(
            f"{name} is a {kind}, which writes no text. klent eval measures it, and klent report shows its run"
        )


def run_or_log(path: Path, runs: Path) -> Path:
    """The folder of a run, or of a log of another trainer, which is any folder that holds something.

    Raises:
        RunError: it is neither.
    """
    foreign = find_run(path, runs) is None and path.is_dir() and any(path.iterdir())
    return path if foreign else run_folder(path, runs)


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
        raise RunError(
            f"{run} has no final model yet; finish it with `klent resume {run}`, or write its newest checkpoint "
            f"as a model with `klent export {run}`"
        )
    return final

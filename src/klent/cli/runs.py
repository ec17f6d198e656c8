"""``klent runs``: what is in the folder of runs."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from klent.cli.common import Debug, out

if TYPE_CHECKING:
    from klent.report.headline import Stat
    from klent.runs.listing import Listed

_STYLES = {"running": "cyan", "done": "green", "stopped": "yellow", "failed": "red"}


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that contains the runs.")] = Path("runs"),
    state: Annotated[
        str | None,
        typer.Option(
            "--state", help="Only those that are running, done, stopped or failed.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per run.")] = False,
    debug: Debug = False,
) -> None:
    """List the runs: state, steps, the result at the top of the report, entropy, and when the last step was.

    `running`: a process works on it. `done`: its last step is done, or `eval.early_stop` ended it. `stopped`: it
    was stopped and saved; `klent resume` continues it. `failed`: it ended with an error or was killed; `klent resume`
    continues from its last checkpoint. Runs of comparisons and studies are listed too.

    ```
    klent runs
    klent runs --state failed
    klent runs ../elsewhere/runs --json
    ```
    """
    from klent.errors import ConfigError, RunError
    from klent.kit.names import nearest
    from klent.runs.listing import list_runs

    if state is not None and state not in _STYLES:
        raise ConfigError(
            f"--state {state}: no such state{nearest(state, _STYLES)}; there are {', '.join(_STYLES)}"
        )
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}; `klent train quickstart` makes runs/quickstart")
    listed = [run for run in list_runs(folder) if state in (None, run.state)]
    if as_json:
        for run in listed:
            print(json.dumps(_as_json(run, folder)))
        return
    if not listed:
        out.print(f"{folder} holds no {'runs' if state is None else f'run that is {state}'}", soft_wrap=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("run", "state", "steps", "result", "entropy", "last step"):
        table.add_column(title, no_wrap=title != "result", justify="right" if title == "steps" else "left")
    for run in listed:
        table.add_row(
            Text(_name(run, folder)),
            Text(run.state, style=_STYLES[run.state]),
            f"{run.step:,}/{'?' if run.steps is None else f'{run.steps:,}'}",
            _stat(run.outcome, label=True),
            _stat(run.entropy),
            _ago(time.time() - run.changed),
        )
    out.print(table)


def _name(run: "Listed", folder: Path) -> str:
    return run.path.relative_to(folder).as_posix()


def _stat(stat: "Stat | None", *, label: bool = False) -> str:
    """``Held-out accuracy 0.09 → 0.70``."""
    if stat is None:
        return "–"
    change = f"{stat.before} → {stat.value}" if stat.before else stat.value
    return f"{stat.label} {change}" if label else change


def _ago(seconds: float) -> str:
    from klent.kit.text import duration

    if seconds < 2 * 86400:
        return f"{duration(max(0.0, seconds))} ago"
    return f"{seconds / 86400:.0f} days ago"


def _as_json(run: "Listed", folder: Path) -> dict[str, object]:
    def stat(one: "Stat | None") -> dict[str, object] | None:
        if one is None:
            return None
        return {"label": one.label, "before": _number(one.before), "value": _number(one.value)}

    return {
        "run": _name(run, folder),
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "result": stat(run.outcome),
        "entropy": stat(run.entropy),
        "changed": run.changed,
    }


def _number(text: str) -> float | str | None:
    """A number as the page shows it, for programs; words where it is none."""
    from klent.kit.text import MINUS

    try:
        return float(text.replace(MINUS, "-").replace(",", "")) if text else None
    except ValueError:
        return text

"""The runs of a folder: what state each is in, how far it is, and what it has reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from klent.kit.tables import finite, step_of
from klent.report.headline import Stat, results
from klent.report.read import RunData, read_run
from klent.runs.folder import is_in_use

State = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Listed:
    """One run.

    Attributes:
        path: its folder.
        state: ``running``: a process works on it; ``done``: its last step is done, or it ended early by its own rule;
            ``stopped``: it was asked to stop, and saved; ``failed``: it ended in another way, by an error or a kill.
        step: the last one done.
        steps: those of the recipe; None if it could not be read.
        outcome: the number that its page begins with: score, reward or loss.
        entropy: of the policy, before and after.
        changed: seconds since the epoch at which it last wrote a step.
    """

    path: Path
    state: State
    step: int
    steps: int | None
    outcome: Stat | None
    entropy: Stat | None
    changed: float


def list_runs(folder: Path) -> list[Listed]:
    """Every run in a folder and in the folders of its studies, the one that changed last first."""
    runs = [list_run(path) for path in _folders(folder)]
    return sorted(runs, key=lambda run: (-run.changed, run.path))


def list_run(path: Path) -> Listed:
    """One run; what is damaged in it is passed over."""
    run = read_run(path, texts=False)
    steps = finite(run.config.get("steps"))
    outcome, entropy = results(run)
    return Listed(
        path=path,
        state=state_of(run),
        step=run.steps[-1] if run.rows else 0,
        steps=None if steps is None else int(steps),
        outcome=outcome,
        entropy=entropy,
        changed=_changed(path),
    )


def state_of(run: RunData) -> State:
    """What has become of a run, by its lock, its record and its model."""
    if is_in_use(run.path):
        return "running"
    if not run.run.get("finished"):
        return "failed"
    final, planned = (run.path / "final").is_dir(), finite(run.config.get("steps"))
    last = run.steps[-1] if run.rows else 0
    ended_early = run.setting("eval", "early_stop") is not None and _evaluated(run) == last
    return "done" if final and (planned is None or last >= planned or ended_early) else "stopped"


def _evaluated(run: RunData) -> int:
    return max((step_of(row) for row in run.evals), default=0)


def _folders(folder: Path) -> Iterator[Path]:
    for pattern in ("*/config.yaml", "*/*/config.yaml"):
        yield from (file.parent for file in folder.glob(pattern))


def _changed(path: Path) -> float:
    """When the newest of the files that each step writes was written."""
    files = [path / name for name in ("metrics.jsonl", "run.json", "config.yaml")]
    return max(file.stat().st_mtime for file in files if file.exists())

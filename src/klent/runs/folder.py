"""The run folder: one run, one folder, one process in it."""

import difflib
import os
import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from filelock import FileLock, Timeout

from klent.errors import RunError
from klent.io.folders import sweep

LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "forks.jsonl")
LOCK, OWNER = ".lock", ".owner"  # not in the lock itself, which filelock may empty
REWARDS_LOG = "rewards.log"  # written while rewards are tried out, before there is a run
PROMPTS = "prompts.jsonl"  # the rows of a task given from Python, written before there is a run
LOCK_SECONDS = 2.0  # a process that was just killed may take a moment to let go


class RunFolder:
    """``runs/NAME/`` held by this process until :meth:`close`, or until the process ends in any way.

    Made by :meth:`create` or :meth:`open`; a context manager. Names of files are the attributes below.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self.config = path / "config.yaml"
        self.info = path / "run.json"
        self.metrics, self.eval, self.samples, self.forks = (path / name for name in LOGS)
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.best = path / "best"  # of a run that may stop early, until it becomes final/
        self.report = path / "report.html"
        self.rewards_log = path / REWARDS_LOG

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A new run's folder, empty but for the lock and what rewards printed in an attempt that was refused.

        Raises:
            RunError: there is something in it already, or another process is at work there.
        """
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, where the run's folder should be: choose another name=...")
        if (
            path.exists()
            and not (path / LOCK).exists()
            and {entry.name for entry in path.iterdir()} - {PROMPTS}
        ):
            raise RunError(_occupied(path))  # before a lock is left in somebody's folder
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        run = cls(path, lock)
        if {entry.name for entry in path.iterdir()} - {LOCK, OWNER, REWARDS_LOG, PROMPTS}:
            run.close()
            raise RunError(_occupied(path))
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run that was started before. What killed writers left half-made is removed.

        Raises:
            RunError: it is not a run's folder, or another process is at work there.
        """
        if not (path / "config.yaml").is_file():
            raise RunError(_not_a_run(path))
        try:
            lock = _take_lock(path)
        except OSError as error:
            raise RunError(f"cannot lock the run folder {path}: {error.strerror or error}") from error
        sweep(path)
        sweep(path / "checkpoints")
        return cls(path, lock)

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock.is_locked:
            (self.path / OWNER).unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def offsets(self) -> dict[str, int]:
        """Bytes in each log, for a checkpoint to remember; they are on the disk when this returns."""
        sizes = {}
        for name in LOGS:
            log = self.path / name
            if log.exists():
                with open(log, "rb") as file:
                    os.fsync(file.fileno())
                    sizes[name] = os.fstat(file.fileno()).st_size
            else:
                sizes[name] = 0
        return sizes

    def truncate_logs(self, offsets: Mapping[str, int], *, on_damage: Callable[[str], None]) -> None:
        """Cut every log back to where it was at a checkpoint, so that the steps done again are written once.

        Args:
            offsets: what :meth:`offsets` returned; ``{}`` empties the logs.
            on_damage: called with one line where a log is shorter than it was, or was edited. The whole lines
                that are left of it stay.
        """
        for name in LOGS:
            log, offset = self.path / name, offsets.get(name, 0)
            size = log.stat().st_size if log.exists() else 0
            if size < offset:
                on_damage(f"{name} has {size} bytes where {offset} were written: some of its rows are lost")
            if size == 0:
                continue
            with open(log, "r+b") as file:
                end = min(size, offset)
                whole = _end_of_row(file, end)
                if whole < end and size >= offset:
                    on_damage(f"{name} was changed: the row across byte {offset} is left out")
                file.truncate(whole)


def _end_of_row(file: BinaryIO, end: int) -> int:
    """Where the last whole row of the first ``end`` bytes ends."""
    file.seek(max(end - 1, 0))
    if end == 0 or file.read(1) == b"\n":
        return end
    file.seek(0)
    return file.read(end).rfind(b"\n") + 1


def _take_lock(path: Path) -> FileLock:
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        owner = (path / OWNER).read_text().strip() if (path / OWNER).exists() else "another process"
        raise RunError(
            f"{path} is in use by {owner}. Wait for it or stop it, or start another run with name=..."
        ) from error
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    (path / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
    return lock


def _occupied(path: Path) -> str:
    if not (path / "config.yaml").exists():
        return f"{path} exists, is not empty, and is no run: choose another name=..."
    number = 2
    while (path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return (
        f"{path} already holds a run. Go on with it by `klent resume {path}`, or by the same command with "
        f"--resume; or start another one with name={path.name}-{number}"
    )


def _not_a_run(path: Path) -> str:
    if path.is_dir():
        return f"{path} is not a run: it has no config.yaml"
    runs = [entry.parent.name for entry in path.parent.glob("*/config.yaml")]
    near = difflib.get_close_matches(path.name, runs, n=1)
    if near:
        return f"there is no run at {path}; did you mean {path.parent / near[0]}?"
    return f"there is no run at {path}; {path.parent} holds {', '.join(sorted(runs)[:8]) or 'no run at all'}"

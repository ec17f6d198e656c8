"""The run folder: one run per folder, one process at a time."""

import contextlib
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from filelock import FileLock, Timeout

from klent.errors import RunError
from klent.io.folders import sweep
from klent.kit.names import closest

LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "forks.jsonl")
LOCK, OWNER = ".lock", ".owner"  # two files, because filelock may empty the first
REWARDS_LOG = "rewards.log"  # written while rewards are tried out, before the run exists
PROMPTS = "prompts.jsonl"  # the rows of a task given from Python, written before the run exists
_WRITTEN = (  # klent writes, cuts or removes these
    *LOGS,
    LOCK,
    OWNER,
    REWARDS_LOG,
    PROMPTS,
    "config.yaml",
    "run.json",
    "report.html",
    "report",
    "checkpoints",
    "final",
    "best",
    "tensorboard",
)
_DEBRIS = re.compile(r"\.(config\.yaml|prompts\.jsonl)\.\d+\.tmp")  # of a start that was killed
LOCK_SECONDS = 2.0  # a process that was just killed may take a moment to release it


class RunFolder:
    """``runs/NAME/``, locked by this process until :meth:`close`, or until the process ends in any way.

    Made by :meth:`create` or :meth:`open`; a context manager. Its attributes are the paths of its files.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self.config = path / "config.yaml"
        self.info = path / "run.json"
        self.metrics, self.eval, self.samples, self.forks = (path / name for name in LOGS)
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.best = path / "best"  # the best model of a run that may stop early, until it becomes final/
        self.report = path / "report.html"
        self.rewards_log = path / REWARDS_LOG
        self._made: list[Path] = []

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """A new run's folder, empty except for the lock and what rewards printed in a refused attempt.

        What a process left that was killed before its run had a config.yaml is removed.

        Raises:
            RunError: it is not empty, or another process uses it.
        """
        refuse_occupied(path)  # before a lock is written into somebody's folder
        _refuse_links(path)
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error.strerror or error}") from error
        run = cls(path, lock)
        run._made = made
        if _others(path) - {LOCK, OWNER, REWARDS_LOG, PROMPTS}:
            run.close()
            raise RunError(_occupied(path))
        for name in ("config.yaml", PROMPTS):
            sweep(path, name)
        return run

    def abandon(self) -> None:
        """Remove the folders that :meth:`create` made, where the run was refused and nothing is in them."""
        remove_refused(self.path, self._made)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run that was started before. Partial files of killed processes are removed.

        Raises:
            RunError: it is not a run's folder, or another process uses it.
        """
        if not (path / "config.yaml").is_file():
            raise RunError(_not_a_run(path))
        _refuse_links(path)
        try:
            lock = _take_lock(path)
        except OSError as error:
            raise RunError(f"cannot lock the run folder {path}: {error.strerror or error}") from error
        sweep(path)
        sweep(path / "checkpoints")
        return cls(path, lock)

    def close(self) -> None:
        """Release the folder to other processes."""
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
        """Size of each log in bytes, for a checkpoint to store; they are on disk when this returns."""
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
        """Cut every log back to its size at a checkpoint; the steps after it will be done again.

        Args:
            offsets: what :meth:`offsets` returned; ``{}`` empties the logs.
            on_damage: called with one line of text for a log that is shorter than it was, or was edited. The
                complete rows that remain are kept.
        """
        for name in LOGS:
            log, offset = self.path / name, offsets.get(name, 0)
            size = log.stat().st_size if log.exists() else 0
            if size < offset:
                on_damage(f"{name} has {size} bytes, but {offset} were written: some of its rows are lost")
            if size == 0:
                continue
            with open(log, "r+b") as file:
                end = min(size, offset)
                whole = _end_of_row(file, end)
                if whole < end and size >= offset:
                    on_damage(f"{name} was edited: the row across byte {offset} is removed")
                file.truncate(whole)


def is_in_use(path: Path) -> bool:
    """Whether a process holds the run's lock now; nothing is written and nobody is kept waiting."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where who owns the run is written down until it lets go
        return (path / OWNER).exists()
    try:
        with open(path / LOCK, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock, or a disk that has none
        return False
    return False


def refuse_occupied(path: Path) -> None:
    """Refuse a folder that holds somebody's files, before anything is written into it."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a folder; choose another name=...")
    if path.exists() and not (path / LOCK).exists() and _others(path) - {PROMPTS}:
        raise RunError(_occupied(path))


def remove_refused(run: Path, made: Sequence[Path]) -> None:
    """Remove folders that were made for a run that was then refused, where nothing of anybody's is in them."""
    if not made or (run / "config.yaml").exists() or not run.is_dir():
        return
    log = run / REWARDS_LOG
    if log.exists() and not log.stat().st_size:
        log.unlink()
    ours = (LOCK, OWNER, PROMPTS)
    if {entry.name for entry in run.iterdir()} <= set(ours):
        for name in ours:
            (run / name).unlink(missing_ok=True)
        for folder in made:
            with contextlib.suppress(OSError):  # another process has put something into it
                folder.rmdir()


def run_of(model: Path) -> Path | None:
    """The run that wrote a model folder, such as its ``final/`` or ``step-20/``; None where there is none."""
    if not (model / "config.json").is_file():
        return None
    parents = (model.parent, model.resolve().parent)
    return next((folder for folder in parents if (folder / "config.yaml").is_file()), None)


def _end_of_row(file: BinaryIO, end: int) -> int:
    """The end of the last complete row within the first ``end`` bytes."""
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
        owner = (
            (path / OWNER).read_text(errors="replace").strip()
            if (path / OWNER).exists()
            else "another process"
        )
        raise RunError(
            f"{path} is in use by {owner}. Wait for it or stop it, or start another run with name=..."
        ) from error
    now = datetime.now().isoformat(sep=" ", timespec="seconds")
    (path / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
    return lock


def _others(path: Path) -> set[str]:
    """The names in a folder, without what a killed start left."""
    return {entry.name for entry in path.iterdir() if not _DEBRIS.fullmatch(entry.name)}


def _refuse_links(path: Path) -> None:
    """Refuse symbolic links where klent writes, cuts and removes: their targets are somebody else's."""
    for entry in (*(path / name for name in _WRITTEN), *(path / "checkpoints").glob("[0-9]*")):
        if entry.is_symlink():
            raise RunError(
                f"{entry} is a symbolic link to {os.readlink(entry)}: a run writes to its own files only. "
                "Put a copy of what it points to in its place, or remove it; the whole run folder may be a link"
            )


def _occupied(path: Path) -> str:
    if not (path / "config.yaml").exists():
        return f"{path} is not empty, and not a run; choose another name=..."
    number = 2
    while (path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return (
        f"{path} already holds a run. Continue it with `klent resume {path}`, or with the same command and "
        f"--resume; or start another one with name={path.name}-{number}"
    )


def _not_a_run(path: Path) -> str:
    if path.is_dir():
        return f"{path} is not a run: it has no config.yaml"
    runs = [entry.parent.name for entry in path.parent.glob("*/config.yaml")]
    if near := closest(path.name, runs):
        return f"there is no run at {path}; did you mean {path.parent / near}?"
    return f"there is no run at {path}; {path.parent} holds {', '.join(sorted(runs)[:8]) or 'no runs'}"

"""Folders that are complete or absent, whatever the moment of a crash."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASIDE = ".aside.tmp"  # suffix of a folder that makes room for a new one


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder to fill, which gets the name ``path`` when the block ends without an exception.

    Everything in it is on the disk before it gets its name, so a crash or a power cut leaves the old folder,
    the new one, or none; never half of one. If the block raises, the new folder is removed. A folder that
    already has the name is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        if path.exists():  # a folder cannot be renamed onto a full one
            os.rename(path, aside)
        os.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder by renaming it first: a kill half-way leaves a temporary folder, not a damaged one."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, removing that first. A kill in between leaves ``source`` to retry."""
    if target.exists():
        remove_folder(target)
    os.rename(source, target)
    _sync(target.parent)


def sweep(parent: Path, name: str = "*") -> None:
    """Clean up after killed writers of ``name`` in ``parent``; only for the process that may write there.

    Unfinished folders are removed. A folder that made room for one that was never finished gets its name
    back.
    """
    for leftover in parent.glob(f".{name}.*.tmp"):
        original = parent / leftover.name[1:].removesuffix(ASIDE).rpartition(".")[0]
        if leftover.name.endswith(ASIDE) and not original.exists():
            os.rename(leftover, original)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        allowed = os.stat(root).st_mode & 0o666  # the user's umask; safetensors would give the owner alone
        for file in files:
            os.chmod(Path(root, file), allowed)
            _sync(Path(root, file))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

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
    _discard(temporary)
    try:
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        if path.exists() or path.is_symlink():  # a folder cannot be renamed onto a full one, nor onto a link
            os.rename(path, aside)
        os.rename(temporary, path)
        _sync(path.parent)
    except BaseException:
        _discard(temporary)
        if (aside.exists() or aside.is_symlink()) and not path.exists():
            os.rename(aside, path)
        raise
    _discard(aside)


def remove_folder(path: Path) -> None:
    """Remove a folder by renaming it first: a kill half-way leaves a temporary folder, not a damaged one."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    os.rename(path, doomed)
    _discard(doomed)


def replace_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, removing that first. A kill in between leaves ``source`` to retry."""
    if target.exists() or target.is_symlink():
        remove_folder(target)
    os.rename(source, target)
    _sync(target.parent)


def sweep(parent: Path, name: str = "*") -> None:
    """Clean up after killed writers of ``name`` in ``parent``; only for the process that may write there.

    Unfinished folders are removed. A folder that made room for one that was never finished gets its name
    back. A symbolic link is removed and not followed, and where ``parent`` is one nothing is done.
    """
    if parent.is_symlink():
        return
    for leftover in parent.glob(f".{name}.*.tmp"):
        original = parent / leftover.name[1:].removesuffix(ASIDE).rpartition(".")[0]
        if leftover.name.endswith(ASIDE) and not original.exists():
            os.rename(leftover, original)
        else:
            _discard(leftover)


def _discard(path: Path) -> None:
    """Remove a file, a folder or a symbolic link, never what a link points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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

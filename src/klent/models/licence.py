"""Under which licence a model came: what its card, its licence file or the list of aliases says."""

import re
from pathlib import Path

from klent.models.pull import KNOWN

_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.+-]+)[\"']?\s*$", re.MULTILINE)
_SAID = {"Apache License": "apache-2.0", "MIT License": "mit"}


def licence_of(model: str, folder: Path) -> str | None:
    """The licence's identifier, such as ``apache-2.0``; None where nothing says it.

    Args:
        model: alias, folder or hub id, as the recipe names it.
        folder: its files.
    """
    if model in KNOWN:
        return KNOWN[model].licence
    card = _text(folder / "README.md")
    front = _FRONT.match(card)
    if front and (named := _LICENCE.search(front[1])):
        return named[1]
    return next((name for said, name in _SAID.items() if said in _head(folder)), None)


def licence_file(folder: Path) -> Path | None:
    """The text of the licence, where the model brings it."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _head(folder: Path) -> str:
    file = licence_file(folder)
    return _text(file)[:500] if file else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

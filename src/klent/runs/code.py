"""The Python files that a recipe names: their hashes for the record, and which are not as recorded."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from klent.config.load import read_values
from klent.errors import ModelError
from klent.models.locate import locate_model
from klent.runs.checkpoint import peek_newest

MODELS = ("model", "reference", "critic.model", "rollout.mixture.target.model")
_BLOCK, _BLOCKS = 1 << 20, 256


def code_hashes(values: Mapping[str, object]) -> dict[str, str]:
    """Name of a file -> its hash, of all code that a recipe runs; with its folder where two have one name.

    These are ``path.py:function`` anywhere, and the model's own Python where ``trust_remote_code`` is set. What
    those files import is not among them.
    """
    files = code_files(values)
    names = [file.name for file in files]
    return {
        file.name if names.count(file.name) == 1 else f"{file.absolute().parent.name}/{file.name}": hash_file(
            file
        )
        for file in files
    }


def code_files(values: Mapping[str, object]) -> list[Path]:
    """The files that exist; one that does not is refused in words when it is loaded."""
    named = {Path(text.rpartition(":")[0]) for text in texts(values) if ".py:" in text}
    if values.get("trust_remote_code") is True:
        for key in MODELS:
            name = value_at(values, key)
            if isinstance(name, str) and (folder := model_folder(name)):
                named |= set(folder.glob("*.py"))
    return sorted(path for path in named if path.is_file())


def changed_code(run: Path) -> list[str]:
    """The code that a run's config.yaml names and that is not what the run was started with, one line each.

    Nothing is imported. Code is told by its name and content, so a project may move.
    """
    known = {(Path(name).name, content) for name, content in _recorded(run)}
    names = {name for name, _ in known}
    return [
        f"{file.absolute()}: " + ("its content is another" if file.name in names else "it was not named")
        for file in code_files(read_values(run / "config.yaml"))
        if (file.name, hash_file(file)) not in known
    ]


def _recorded(run: Path) -> Iterator[tuple[str, object]]:
    """Name and hash of the code in run.json and in the newest checkpoint: either may be damaged."""
    try:
        record = json.loads((run / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        record = {}
    newest = peek_newest(run)
    for holder in (record, newest[1].get("fingerprint") if newest else None):
        code = holder.get("code") if isinstance(holder, Mapping) else None
        yield from code.items() if isinstance(code, Mapping) else ()


def texts(value: object) -> Iterator[str]:
    """Every text in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def value_at(values: Mapping[str, object], dotted: str) -> object:
    """The value of a dotted key; None where there is none."""
    value: object = values
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def model_folder(name: str) -> Path | None:
    """The folder of a model; None for a hub's id, and for what loading refuses in its own words."""
    try:
        source = locate_model(name)
    except ModelError:
        return None
    return source if isinstance(source, Path) else None


def hash_file(path: Path) -> str:
    """Of size and content; of a file above 256 MiB, of 256 blocks spread over it."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    whole = size <= _BLOCK * _BLOCKS
    with open(path, "rb") as file:
        if whole:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        for index in range(0 if whole else _BLOCKS):
            file.seek((size - _BLOCK) * index // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()

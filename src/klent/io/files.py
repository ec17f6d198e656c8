"""Files that survive a crash: atomic writes, JSON Lines, checksums."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from klent.errors import RunError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` so that a reader, or a crash, sees either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link of that name would be written through
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file that a person may have edited.

    Raises:
        RunError: its bytes are not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RunError(
            f"{path} is not UTF-8 text ({error}). Save it as UTF-8, or name another file"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RunError: there is no JSON object in it.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged: it is not JSON ({error}). Remove it, and it is written again"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it is not a JSON object. Remove it, and it is written again")
    return value


def append_line(path: Path, row: Mapping[str, object]) -> None:
    """Append one JSON object as one line, in one write. NaN and infinities become null: JSON has neither."""
    line = json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False) + "\n"
    with open(path, "ab") as file:
        file.write(line.encode())


def read_jsonl(path: Path, *, on_damage: Callable[[str], None] = warnings.warn) -> Iterator[dict[str, Any]]:
    """Rows of a JSON Lines file that klent wrote; a last line that a crash cut off is left out.

    Args:
        path: the file; one that does not exist has no rows.
        on_damage: told of each other line that is no row, which is left out; by default a Python warning.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            row = _row(line)
            if row is None:
                on_damage(f"{path}:{number} is damaged: it is no JSON object. Its row is left out")
            else:
                yield row


def read_steps(path: Path, *, on_damage: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """As :func:`read_jsonl`, of a file whose rows have a step each: metrics.jsonl and eval.jsonl."""
    for row in read_jsonl(path, on_damage=on_damage):
        if isinstance(row.get("step"), int):
            yield row
        else:
            on_damage(f"{path}: a row has no `step`, so it is damaged. It is left out")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value

"""Files that survive a crash: atomic writes, JSON Lines, checksums."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


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

"""Rows of JSON Lines, parquet and Hugging Face datasets, each with the place that it came from."""

import datetime
import decimal
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from klent.errors import ConfigError, DataError
from klent.kit.names import nearest

Row: TypeAlias = dict[str, object]

LINES = (".jsonl", ".ndjson", ".json")
_LEFT_OUT = object()


def read_rows(data: str, split: str, subset: str | None, base: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a file or dataset, each after the place that it came from, ``file:line``.

    Raises:
        ConfigError: a file, split or library that is missing.
        DataError: content that cannot be read, with file and line.
    """
    path = base / Path(data).expanduser()
    if data.endswith(LINES):
        return _json_lines(path, data)
    if data.endswith(".parquet"):
        return _parquet(path, data)
    if path.is_file():
        raise ConfigError(f"task.data: {data} is neither .jsonl nor .parquet; convert it to one of these")
    return _dataset(data, path, split, subset)


def _json_lines(path: Path, shown: str) -> Iterator[tuple[str, Row]]:
    if not path.is_file():
        raise ConfigError(f"task.data: there is no file {shown} (looked for {path.absolute()})")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        raise DataError(
            f"{shown}: one JSON array; write one object per line (jq -c '.[]' {shown} > lines.jsonl)"
        )
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{shown}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line)") from None
        except _Twice as error:
            raise DataError(f"{where}: the key {error.args[0]!r} stands twice in one object") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # JSON that Python does not read
            reason = (
                "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
            )
            raise DataError(f"{where}: cannot be read: {reason}; write it as text") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with a prompt, not {type(row).__name__}")
        yield where, row


class _Twice(Exception):
    """A key that an object has twice: one of its values would be lost."""


def _once(pairs: list[tuple[str, object]]) -> Row:
    row: Row = {}
    for key, value in pairs:
        if key in row:
            raise _Twice(key)
        row[key] = value
    return row


def _parquet(path: Path, shown: str) -> Iterator[tuple[str, Row]]:
    if not path.is_file():
        raise ConfigError(f"task.data: there is no file {shown} (looked for {path.absolute()})")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("task.data: parquet needs: pip install 'klent[data]'") from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{shown}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    return _numbered(shown, table.to_pylist())


def _dataset(data: str, path: Path, split: str, subset: str | None) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"task.data: {data} is not a .jsonl or .parquet file; a dataset needs: pip install 'klent[data]'"
        ) from error
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    try:
        if saved:
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.is_dir() else data, name=subset, split=split)
    except Exception as error:  # the library raises anything from KeyError to its HTTP client's errors
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"task.data: cannot load {data!r} (split {split!r}): {reason}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            splits = ", ".join(loaded)
            raise ConfigError(f"task.split: {data} has no {split!r}{nearest(split, loaded)}; it has {splits}")
        loaded = loaded[split]
    return _numbered(f"{data}/{split}", loaded)


def _numbered(shown: str, rows: Iterable[Mapping[str, object]]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, 1):
        columns = {name: _without_filling(_json_value(value)) for name, value in row.items()}
        yield f"{shown}:{number}", {name: value for name, value in columns.items() if value is not _LEFT_OUT}


def _without_filling(value: object) -> object:
    """Messages and tools without the nulls that a table fills in where only other rows have a field."""
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and {"role", "function"} & item.keys() for item in value
    ):
        return value
    return [_filled_fields(item) for item in value]


def _filled_fields(value: object) -> object:
    if isinstance(value, dict):
        return {key: _filled_fields(item) for key, item in value.items() if item is not None}
    return [_filled_fields(item) for item in value] if isinstance(value, list) else value


def _json_value(value: object) -> object:
    """A cell as JSON can hold it: dates and decimals as text; images and other bytes are left out."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_json_value(item) for item in value]
        return _LEFT_OUT if any(item is _LEFT_OUT for item in items) else items
    if isinstance(value, dict):
        entries = {str(key): _json_value(item) for key, item in value.items()}
        return _LEFT_OUT if any(item is _LEFT_OUT for item in entries.values()) else entries
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else _LEFT_OUT

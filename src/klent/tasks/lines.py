"""JSON Lines in memory as they are in the file: each row is an offset, and becomes an object when it is asked for."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from klent.errors import ConfigError, DataError

Row = dict[str, object]

_BLOCK = 256  # rows that are parsed at once
_BLANK = b" \t\v\f"
_BETWEEN = secrets.token_hex(16).encode()


def content_of(path: Path, shown: str, key: str) -> bytes:
    """The bytes of a file of data.

    Args:
        path: the file.
        shown: its name in messages.
        key: of the recipe that names it.

    Raises:
        ConfigError: there is no such file.
        DataError: it cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{key}: there is no file {shown} (looked for {path.absolute()})")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from error


class JsonLines:
    """The rows of a file, in its order; a million short ones take the file's size and 16 MB.

    Args:
        path: the file.
        shown: its name in messages.
        key: of the recipe that names it.

    Raises:
        ConfigError: there is no such file.
        DataError: it cannot be read, or is one JSON array.
    """

    def __init__(self, path: Path, shown: str, key: str = "task.data") -> None:
        content = content_of(path, shown, key)
        content = content.removeprefix(b"\xef\xbb\xbf")
        if content[:64].lstrip().startswith(b"["):
            raise DataError(
                f"{shown}: one JSON array; write one object per line (jq -c '.[]' {shown} > lines.jsonl)"
            )
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._shown = shown
        self._content = content
        self._starts, self._ends, self._numbers = _lines(content)

    def __len__(self) -> int:
        return len(self._starts)

    def place(self, index: int) -> str:
        """``file:line`` of a row."""
        return f"{self._shown}:{self._numbers[index]}"

    def __getitem__(self, index: int) -> Row:
        """A row, checked."""
        return _read(self._line(index), self.place(index))

    def __iter__(self) -> Iterator[Row]:
        """Every row, checked."""
        for start in range(0, len(self), _BLOCK):
            stop = min(start + _BLOCK, len(self))
            block = self._content[self._starts[start] : self._ends[stop - 1]]
            rows = _read_at_once(block, stop - start)
            yield from rows if rows is not None else (self[index] for index in range(start, stop))

    def _line(self, index: int) -> bytes:
        return self._content[self._starts[index] : self._ends[index]]


def _lines(content: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Start, end and number of every line that is not blank."""
    letters = np.frombuffer(content + b"\n", dtype=np.uint8)
    breaks = np.flatnonzero(letters == ord("\n"))
    starts, ends = np.concatenate(([0], breaks[:-1] + 1)), breaks
    numbers = np.arange(1, len(starts) + 1)
    kept = ends > starts
    for index in np.flatnonzero(kept & np.isin(letters[starts], np.frombuffer(_BLANK, dtype=np.uint8))):
        kept[index] = bool(content[starts[index] : ends[index]].strip(_BLANK))
    return starts[kept], ends[kept], numbers[kept]


def _read_at_once(block: bytes, count: int) -> list[Row] | None:
    """The rows of adjacent lines, parsed together; None where each must be looked at for what is wrong with it.

    A word that no file holds stands between two lines, so that none can run into the next. No key stands twice
    if there are no more signs of keys than keys: a key is a text and a colon, with white space at most between.
    """
    try:
        values = json.loads((b"[%b]" % block.replace(b"\n", b',"%b",' % _BETWEEN)).decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    rows, between = values[::2], values[1::2]
    if len(rows) != count or between != [_BETWEEN.decode()] * (count - 1):
        return None
    if not all(type(row) is dict for row in rows):
        return None
    signs = sum(block.count(sign) for sign in (b'":', b" :", b"\t:"))
    return rows if signs in (sum(map(len, rows)), _keys(rows)) else None


def _keys(value: object) -> int:
    """How many keys there are in a value, however deep."""
    if type(value) is dict:
        return len(value) + sum(_keys(item) for item in value.values() if type(item) in (dict, list))
    if type(value) is list:
        return sum(map(_keys, value))
    return 0


def _read(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line)") from None
    except _Twice as error:
        raise DataError(f"{where}: the key {error.args[0]!r} is there twice in one object") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # JSON that Python does not read
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply" if deep else "a number of too many digits"
        raise DataError(f"{where}: cannot be read: {reason}; write it as text") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with a prompt, not {type(row).__name__}")
    return row


class _Twice(Exception):
    """A key that an object has twice: one of its values would be lost."""


def _once(pairs: list[tuple[str, object]]) -> Row:
    row: Row = {}
    for key, value in pairs:
        if key in row:
            raise _Twice(key)
        row[key] = value
    return row

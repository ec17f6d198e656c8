"""JSON Lines as they are in the file: each row is an offset, and becomes an object when it is asked for.

A file of less than ``IN_MEMORY`` bytes is read once. Of a larger one 24 bytes per row are kept, and rows are read
from the disk when they are drawn.
"""

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from klent.errors import ConfigError, DataError

Row = dict[str, object]

IN_MEMORY = 1 << 28
"""Bytes of a file that is kept in memory."""

_BLOCK = 256  # rows that are parsed at once
_READ = 1 << 24  # bytes of a file that are searched for line ends at once
_BLANK = b" \t\v\f\r"
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


class _Content(Protocol):
    size: int

    def read(self, start: int, stop: int) -> bytes: ...


class _Held:
    """A file that is in memory; what happens to it later changes nothing."""

    def __init__(self, content: bytes) -> None:
        if b"\r" in content:
            content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._content, self.size = content, len(content)

    def read(self, start: int, stop: int) -> bytes:
        return self._content[start:stop]


class _OnDisk:
    """A file that is too large for that. It stays open, so that another file of its name changes nothing either."""

    def __init__(self, file: BinaryIO, shown: str) -> None:
        self._file, self._shown = file, shown
        self._state = self._now()
        self.size = self._state[0]

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def read(self, start: int, stop: int) -> bytes:
        """Some bytes of it.

        Raises:
            DataError: the file has been written to since it was opened.
        """
        content = os.pread(self._file.fileno(), stop - start, start)
        if self._now() != self._state or len(content) != stop - start:
            raise DataError(
                f"{self._shown}: the file was changed while it was in use. Put it back, and go on with `klent resume`"
            )
        return content


def _open(path: Path, shown: str, key: str) -> _Content:
    """The content of a file, in memory unless it is too large."""
    if not path.is_file() or path.stat().st_size < IN_MEMORY:
        return _Held(content_of(path, shown, key))
    try:
        return _OnDisk(open(path, "rb", buffering=0), shown)
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from error


class JsonLines:
    """The rows of a file, in its order; a million short ones take 24 MB, and the file's size where that is small.

    Args:
        path: the file.
        shown: its name in messages.
        key: of the recipe that names it.

    Raises:
        ConfigError: there is no such file.
        DataError: it cannot be read, or is one JSON array.
    """

    def __init__(self, path: Path, shown: str, key: str = "task.data") -> None:
        content = _open(path, shown, key)
        head = content.read(0, min(64, content.size))
        first = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        if head[first:].lstrip().startswith(b"["):
            raise DataError(
                f"{shown}: one JSON array; write one object per line (jq -c '.[]' {shown} > lines.jsonl)"
            )
        self._shown = shown
        self._content = content
        self._starts, self._ends, self._numbers = _lines(content, first)

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
            block = self._content.read(int(self._starts[start]), int(self._ends[stop - 1]))
            rows = _read_at_once(block, stop - start)
            yield from rows if rows is not None else (self[index] for index in range(start, stop))

    def _line(self, index: int) -> bytes:
        return self._content.read(int(self._starts[index]), int(self._ends[index]))


def _lines(content: _Content, first: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Start, end and number of every line that is not blank; ``first`` is where the first one starts."""
    found, spaced = (
        [],
        [np.zeros(1, dtype=np.int64)],
    )  # line ends; lines that begin with white space, by number
    count = 0
    for base in range(0, content.size, _READ):
        letters = np.frombuffer(content.read(base, min(base + _READ, content.size)), dtype=np.uint8)
        ends = np.flatnonzero(letters == ord("\n"))
        inside = ends[ends + 1 < len(letters)] + 1
        blank = np.isin(letters[inside], np.frombuffer(_BLANK, dtype=np.uint8))
        spaced.append(np.flatnonzero(blank) + count + 1)
        if base:  # whether the line at its very beginning is blank is seen when it is read
            spaced.append(np.array([count]))
        found.append(ends + base)
        count += len(ends)
    breaks = np.concatenate([*found, np.array([content.size])])
    starts, ends = np.concatenate(([first], breaks[:-1] + 1)), breaks
    kept = ends > starts
    for index in np.unique(np.concatenate(spaced)):
        if kept[index]:
            kept[index] = bool(content.read(int(starts[index]), int(ends[index])).strip(_BLANK))
    return starts[kept], ends[kept], np.flatnonzero(kept) + 1


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
        raise DataError(
            f"{where}: the key {error.args[0]!r} occurs twice in one object; remove one"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # JSON that Python does not read
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply" if deep else "a number of too many digits"
        raise DataError(f"{where}: cannot be read: {reason}; write it as text") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object with a prompt, not {type(row).__name__}")
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

"""CSV and TSV: a header, then a row per record, every cell text; each record with the line that it begins on."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from klent.errors import DataError
from klent.kit.text import plural
from klent.tasks.lines import Row, content_of

TABLES = (".csv", ".tsv")
_AS_JSON = ("messages", "conversations")  # columns that hold no text, but a list written as JSON
_LONGEST = 2**31 - 1  # letters of a cell; the library's own limit is 131,072


class CommaSeparated:
    """The records of a file; quoted cells may hold separators, quotes (doubled) and line breaks.

    Separated are the cells of ``.tsv`` by tabs, those of ``.csv`` by commas, or by semicolons where the header has
    these alone, as spreadsheets of many countries write it. An empty cell is no value; ``messages`` are JSON.

    Args:
        path: the file, in UTF-8, with or without a byte order mark.
        shown: its name in messages.
        key: of the recipe that names it.

    Raises:
        ConfigError: there is no such file.
        DataError: it cannot be read, has no header, or a quote in it does not end.
    """

    def __init__(self, path: Path, shown: str, key: str = "task.data") -> None:
        content = content_of(path, shown, key)
        self._shown = shown
        self._records, self._lines = _records(_text(content, shown), shown)
        self._names = self._records.pop(0) if self._records else []
        self._lines = self._lines[1:]
        _refuse_header(self._names, shown)

    def __len__(self) -> int:
        return len(self._records)

    def place(self, index: int) -> str:
        """``file:line`` of a record, the first of its lines."""
        return f"{self._shown}:{self._lines[index]}"

    def __getitem__(self, index: int) -> Row:
        """A record, checked."""
        cells, where = self._records[index], self.place(index)
        if len(cells) != len(self._names):
            raise DataError(
                f"{where}: {plural(len(cells), 'cell')}, but the header has {plural(len(self._names), 'column')}. "
                "Put a cell that holds a separator or a line break into double quotes"
            )
        return {name: _cell(name, cell, where) for name, cell in zip(self._names, cells, strict=True)}

    def __iter__(self) -> Iterator[Row]:
        """Every record, checked."""
        return (self[index] for index in range(len(self)))


def _text(content: bytes, shown: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{shown}:{line}: not UTF-8 text. Save it as UTF-8") from None


def _records(text: str, shown: str) -> tuple[list[list[str]], list[int]]:
    """Cells of every record that is not blank, and the number of its first line."""
    header = text.lstrip().split("\n", 1)[0]
    separator = "\t" if shown.endswith(".tsv") else ";" if ";" in header and "," not in header else ","
    records, lines, line = [], [], 1
    before = csv.field_size_limit(_LONGEST)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append(cells)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        reason = "a double quote opens a cell and does not end" if "end of data" in str(error) else str(error)
        raise DataError(
            f"{shown}:{line}: not readable: {reason}. Write a quote inside a quoted cell twice"
        ) from None
    finally:
        csv.field_size_limit(before)
    return records, lines


def _refuse_header(names: list[str], shown: str) -> None:
    if not names:
        raise DataError(f"{shown}: no rows; the first line should name the columns")
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            problem = f"column {name!r} is there {count} times" if name.strip() else "a column has no name"
            raise DataError(f"{shown}:1: {problem}. Give each column of the header a name of its own")


def _cell(name: str, cell: str, where: str) -> object:
    if not cell:
        return None
    if name not in _AS_JSON:
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise DataError(
            f"{where}: {name!r} is not JSON. Write messages as JSON, or a prompt and an answer as two columns"
        ) from None

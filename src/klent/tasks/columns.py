"""Columns of somebody's file under the names that klent reads: ``task.columns: {prompt: question}``."""

from collections.abc import Iterator, Mapping

from klent.errors import DataError
from klent.kit.names import nearest
from klent.tasks.lines import Row
from klent.tasks.sources import Rows


class Renamed:
    """Rows with some columns under another name; the others stay as they are.

    Args:
        rows: of the file.
        columns: new name -> name in the file; ``reward_model.ground_truth`` is an entry of an object in a column.

    Raises:
        DataError: as a row is read that has no such column, with its place.

    >>> Renamed.row({"question": "2+2?", "meta": {"gold": 4}}, {"prompt": "question", "answer": "meta.gold"}, "f:1")
    {'meta': {'gold': 4}, 'prompt': '2+2?', 'answer': 4}
    """

    def __init__(self, rows: Rows, columns: Mapping[str, str]) -> None:
        self._rows, self._columns = rows, columns

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self.row(self._rows[index], self._columns, self.place(index))

    def __iter__(self) -> Iterator[Row]:
        for index, row in enumerate(self._rows):
            yield self.row(row, self._columns, self.place(index))

    def place(self, index: int) -> str:
        """Where a row came from."""
        return self._rows.place(index)

    @staticmethod
    def row(row: Row, columns: Mapping[str, str], where: str) -> Row:
        """One row, renamed; a column that two names are given to is under both."""
        named = {new: _value(row, name, new, where) for new, name in columns.items()}
        taken = {*columns, *columns.values()}
        return {**{name: value for name, value in row.items() if name not in taken}, **named}


def _value(row: Row, name: str, new: str, where: str) -> object:
    """A column, or an entry of the object in one."""
    if name in row:
        return row[name]
    value: object = row
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            listed = ", ".join(row) or "none"
            raise DataError(
                f"{where}: no column {name!r} for task.columns.{new}{nearest(name, row)}; columns are: {listed}"
            )
        value = value[key]
    return value

"""Rows of a log as typed columns: whatever judges a run reads its log here, whichever program wrote it."""

from collections.abc import Mapping, Sequence

Row = Mapping[str, object]
"""One line of a log: metric name -> value. Every row has a whole-number ``step``."""


def finite(value: object) -> float | None:
    """``value`` as a float where it is a finite number; otherwise None.

    A value that no float32 computation can give counts as not finite, so squares of the rest are finite.

    >>> finite(0.5), finite(float("nan")), finite("0.5"), finite(True), finite(1e300)
    (0.5, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e40:
        return None
    return float(value)


def step_of(row: Row) -> int:
    """The step of a row.

    >>> step_of({"step": 3, "reward/mean": 0.5})
    3
    """
    step = row["step"]
    if not isinstance(step, int):
        raise TypeError(f"the step of a row must be a whole number, not {step!r}")
    return step


class Table:
    """Metric name -> its value at every step that has one.

    Args:
        rows: in order of their ``step``. A value that is None or not finite was measured, but is no number.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._columns: dict[str, list[float | None]] = {}

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[object]]) -> "Table":
        """From columns of equal length; steps are counted from 1 unless ``step`` is among them.

        >>> Table.of({"reward/mean": [0.1, None, 0.3]}).series("reward/mean")
        ([1, 3], [0.1, 0.3])
        """
        count = max((len(values) for values in columns.values()), default=0)
        numbered = {"step": list(range(1, count + 1)), **columns}
        return cls([{name: values[i] for name, values in numbered.items()} for i in range(count)])

    def column(self, name: str) -> list[float | None]:
        """The value in every row, None where it is absent or not finite; read once."""
        if name not in self._columns:
            self._columns[name] = [finite(row.get(name)) for row in self.rows]
        return self._columns[name]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values, without the steps where it is absent or not finite."""
        column = self.column(name)
        steps = [step_of(row) for row, value in zip(self.rows, column, strict=True) if value is not None]
        return steps, [value for value in column if value is not None]

    def has(self, name: str) -> bool:
        """Whether a metric has at least one finite value."""
        return any(value is not None for value in self.column(name))

    def pairs(self, *names: str) -> list[tuple[float, ...]]:
        """The step and the values of these metrics, at the steps that have all of them."""
        complete = []
        for row, *cells in zip(self.rows, *(self.column(name) for name in names), strict=True):
            values = [value for value in cells if value is not None]
            if len(values) == len(names):
                complete.append((float(step_of(row)), *values))
        return complete

    def nonfinite(self, name: str) -> list[int]:
        """Steps at which it was measured and was no number."""
        return [step_of(row) for row in self.rows if name in row and finite(row[name]) is None]

    def names(self) -> list[str]:
        """Every metric that any row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

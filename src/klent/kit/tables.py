"""Rows of a log as columns: what judges a run reads it through here, whoever wrote the log."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def finite(value: Any) -> float | None:
    """``value`` as a float where it is a finite number; otherwise None.

    What no float32 computation can give counts as not finite, so that squares of the rest are finite.

    >>> finite(0.5), finite(float("nan")), finite("0.5"), finite(True), finite(1e300)
    (0.5, None, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e40:
        return None
    return float(value)


class Table:
    """Metric name -> its value at every step that has one.

    Args:
        rows: in order of their ``step``; a value that is None or not finite was measured and is no number.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]]) -> "Table":
        """From columns of equal length; steps are counted from 1 unless ``step`` is among them.

        >>> Table.of({"reward/mean": [0.1, None, 0.3]}).series("reward/mean")
        ([1, 3], [0.1, 0.3])
        """
        count = max((len(values) for values in columns.values()), default=0)
        numbered = {"step": list(range(1, count + 1)), **columns}
        return cls([{name: values[place] for name, values in numbered.items()} for place in range(count)])

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values, without the steps where it is absent or not finite."""
        known = [(row["step"], value) for row in self.rows if (value := finite(row.get(name))) is not None]
        return [step for step, _ in known], [value for _, value in known]

    def pairs(self, *names: str) -> list[tuple[float, ...]]:
        """The step and the values of these metrics, at the steps that have all of them."""
        found = []
        for row in self.rows:
            values = [finite(row.get(name)) for name in names]
            if None not in values:
                found.append((float(row["step"]), *(value for value in values if value is not None)))
        return found

    def nonfinite(self, name: str) -> list[int]:
        """Steps at which it was measured and was no number."""
        return [row["step"] for row in self.rows if name in row and finite(row[name]) is None]

    def names(self) -> list[str]:
        """Every metric that some row has, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name != "step"))

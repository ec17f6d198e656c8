"""What a run says of itself while it goes: the law's forecast, and findings when they start."""

from collections.abc import Iterable
from typing import Any

from klent.kit.tables import Table
from klent.measure.findings import diagnose
from klent.measure.law import law_metrics

LOOKS = 256
"""A look at all rows costs as much as they are many: it is taken once in a 256th of the rows so far."""


class Watch:
    """The rows so far, and what was said of them.

    Up to twice ``LOOKS`` rows every step is looked at; after 10,000 every 39th, so that a step's share of the
    cost does not grow with the run.

    It knows nothing but rows, so a resumed run that hands in the rows of metrics.jsonl goes on as if it had
    not been stopped.

    Args:
        rows: of the steps done before.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.rows = list(rows)
        self.told = {finding.name for finding in diagnose(Table(self.rows))}

    def see(self, row: dict[str, Any]) -> dict[str, float]:
        """Take in the row of a step that was just done; returns its ``law/...`` metrics, where it is looked at."""
        self.rows.append(row)
        return law_metrics(self.rows) if self._looks() else {}

    def news(self) -> list[str]:
        """Findings that were not there before, each told once, the gravest first."""
        if not self._looks():
            return []
        new = [f for f in diagnose(Table(self.rows)) if f.until is None and f.name not in self.told]
        self.told |= {finding.name for finding in new}
        return [finding.sentence() for finding in new]

    def _looks(self) -> bool:
        """Whether this step is looked at: a function of the number of rows, so of what a resumed run has too."""
        count = len(self.rows)
        return count % max(1, count // LOOKS) == 0

"""What a run says of itself while it goes: the law's forecast, and findings when they start."""

from collections.abc import Iterable
from typing import Any

from klent.kit.tables import Table
from klent.measure.findings import diagnose
from klent.measure.law import law_metrics


class Watch:
    """The rows so far, and what was said of them.

    It knows nothing but rows, so a resumed run that hands in the rows of metrics.jsonl goes on as if it had
    not been stopped.

    Args:
        rows: of the steps done before.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self.rows = list(rows)
        self.told = {finding.name for finding in diagnose(Table(self.rows))}

    def see(self, row: dict[str, Any]) -> dict[str, float]:
        """Take in the row of a step that was just done; returns its ``law/...`` metrics."""
        self.rows.append(row)
        return law_metrics(self.rows)

    def news(self) -> list[str]:
        """Findings that were not there before, each told once, the gravest first."""
        new = [f for f in diagnose(Table(self.rows)) if f.until is None and f.name not in self.told]
        self.told |= {finding.name for finding in new}
        return [finding.sentence() for finding in new]

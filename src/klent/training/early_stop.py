"""When a run has gained what it will gain, judged by what its evaluations say without a label.

Nothing is kept beside eval.jsonl: the rows that a resumed run finds there decide as they did before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from klent.config.model import EarlyStop

Row = Mapping[str, Any]
LOWER = ("entropy",)  # signals that improve by falling


def best_row(rows: Sequence[Row], settings: EarlyStop) -> Row:
    """The evaluation whose signal none of the later ones beats by more than ``margin``.

    Args:
        rows: of eval.jsonl, in order of their step, at least one.
        settings: ``eval.early_stop``.

    Example:
        >>> rows = [{"step": 0, "kept": 0.5}, {"step": 2, "kept": 0.7}, {"step": 4, "kept": 0.6}]
        >>> best_row(rows, EarlyStop())["step"]
        2
    """
    sign = -1 if settings.signal in LOWER else 1
    best = rows[0]
    for row in rows[1:]:
        if sign * (row[settings.signal] - best[settings.signal]) > settings.margin:
            best = row
    return best


def is_over(rows: Sequence[Row], settings: EarlyStop) -> bool:
    """Whether the last ``patience`` evaluations brought nothing better."""
    steps = [row["step"] for row in rows]
    return len(steps) - 1 - steps.index(best_row(rows, settings)["step"]) >= settings.patience

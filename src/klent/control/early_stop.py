"""When a run has gained what it will gain, judged by a signal of its evaluations.

Nothing is kept beside eval.jsonl: the rows that a resumed run finds there decide as they did before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
FALLING = ("entropy", "loss")  # signals that improve by falling


def best_row(rows: Sequence[Row], signal: str, margin: float = 0.0) -> Row:
    """The evaluation whose signal none of the later ones beats by more than ``margin``.

    Args:
        rows: of eval.jsonl, in order of their step, at least one.
        signal: a key of every row.
        margin: what a better one must exceed the best by.

    Example:
        >>> rows = [{"step": 0, "kept": 0.5}, {"step": 2, "kept": 0.7}, {"step": 4, "kept": 0.6}]
        >>> best_row(rows, "kept")["step"]
        2
    """
    sign = -1 if signal in FALLING else 1
    best = rows[0]
    for row in rows[1:]:
        if sign * (row[signal] - best[signal]) > margin:
            best = row
    return best


def is_over(rows: Sequence[Row], signal: str, margin: float, patience: int) -> bool:
    """Whether the last ``patience`` evaluations brought nothing better.

    Example:
        >>> is_over([{"kept": 0.5}, {"kept": 0.7}, {"kept": 0.6}], "kept", 0.0, patience=1)
        True
    """
    best = best_row(rows, signal, margin)
    return next(since for since, row in enumerate(reversed(rows)) if row is best) >= patience

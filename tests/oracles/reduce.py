"""The three averages, one token at a time."""

import numpy as np
from numpy.typing import NDArray


def reduce_tokens(
    loss: NDArray[np.float64], mask: NDArray[np.bool_], over: str, denominator: float | None
) -> float:
    """Token mean (DAPO), mean of sequence means (GRPO), sum over a constant (Dr. GRPO)."""
    rows = [
        [float(x) for x, keep in zip(row, kept, strict=True) if keep]
        for row, kept in zip(loss, mask, strict=True)
    ]
    rows = [row for row in rows if row]
    if over == "sequences":
        total, count = sum(sum(row) / len(row) for row in rows), len(rows)
    else:
        total, count = sum(sum(row) for row in rows), sum(len(row) for row in rows)
    return total / (count if denominator is None else denominator) if rows else 0.0

"""Learning rates as functions of the optimizer step alone: a resumed run needs no memory of them."""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup: int,
    total: int,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
) -> float:
    """Learning rate of optimizer step ``step`` (from 0): a linear warm-up, then flat or down to 0.

    Example:
        >>> [learning_rate(k, peak=1.0, warmup=2, total=6, schedule="linear") for k in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    done = (step - warmup) / max(total - warmup, 1)
    return peak * (1.0 - done) if schedule == "linear" else peak * 0.5 * (1.0 + math.cos(math.pi * done))

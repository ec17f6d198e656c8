"""Whether a reward model is as sure of its preferences as it is right: predicted against observed."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from klent.kit.statistics import mean, wilson

BINS = 10
LEAST = 5  # pairs of a bin


class Bin(NamedTuple):
    """Pairs whose scores are about equally far apart.

    Attributes:
        low: the smallest distance of two scores in it.
        high: the largest.
        predicted: mean of what the model gives the answer that it prefers, σ of the distance.
        observed: the share of pairs in which that answer is the better one; ties count half.
        observed_low: lower end of its 95% interval over pairs (Wilson).
        observed_high: upper end.
        pairs: how many.
    """

    low: float
    high: float
    predicted: float
    observed: float
    observed_low: float
    observed_high: float
    pairs: int


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), of any x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def reliability(differences: Sequence[float]) -> list[Bin]:
    """Predicted against observed in bins of equally many pairs, at most 10 and of 5 pairs at least.

    Args:
        differences: score of the better answer less that of the other, for each pair.

    Examples:
        >>> [(b.pairs, round(b.predicted, 3), b.observed) for b in reliability([0.0, 2.0, 2.0, 2.0, -2.0] * 2)]
        [(5, 0.728, 0.8), (5, 0.881, 0.6)]
    """
    ordered = sorted(differences, key=abs)  # of equal distances in the pairs' order, whichever was right
    count = min(BINS, max(1, len(ordered) // LEAST))
    edges = [index * len(ordered) // count for index in range(count + 1)]
    return [_bin(ordered[start:end]) for start, end in pairwise(edges) if end > start]


def _bin(part: Sequence[float]) -> Bin:
    sizes = [abs(difference) for difference in part]
    observed = mean([0.5 if not difference else float(difference > 0) for difference in part])
    low, high = wilson(observed, len(part))
    predicted = mean([sigmoid(size) for size in sizes])
    return Bin(min(sizes), max(sizes), predicted, observed, low, high, len(part))


def calibration_error(bins: Sequence[Bin]) -> float:
    r"""The expected calibration error: :math:`\sum_b \frac{n_b}{n} |\text{predicted}_b - \text{observed}_b|`."""
    total = sum(b.pairs for b in bins)
    return sum(b.pairs * abs(b.predicted - b.observed) for b in bins) / total


def log_loss(differences: Sequence[float]) -> float:
    """Mean of -log σ(difference), nats per pair; log 2 where nothing is preferred."""
    return mean([math.log1p(math.exp(-abs(d))) + max(0.0, -d) for d in differences])


def calibration(differences: Sequence[float]) -> dict[str, object]:
    """The part of a row of ``eval.jsonl`` that says how far a reward model's certainty can be believed."""
    bins = reliability(differences)
    return {
        "calibration/error": calibration_error(bins),
        "calibration/log_loss": log_loss(differences),
        "calibration/bins": [b._asdict() for b in bins],
    }

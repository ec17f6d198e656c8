"""Statistics of runs and evaluations: pass@k, intervals, Holm's correction, the ends of a noisy series."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from klent.kit.student import t_bound

Z95 = 1.959964
"""The normal quantile of a two-sided 95% interval."""


def mean(values: Sequence[float]) -> float:
    """Plain mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def tenth(count: int) -> int:
    """Number of values averaged at either end of a noisy series: a tenth of ``count``, from 1 to 20.

    >>> tenth(5), tenth(40), tenth(1000)
    (1, 4, 20)
    """
    return max(1, min(20, count // 10))


class Ends(NamedTuple):
    """Means over the first and the last ``window`` values of a series."""

    start: float
    end: float
    window: int


def ends(values: Sequence[float]) -> Ends:
    """Start and end of a noisy series: means over its first and last tenth, see :func:`tenth`.

    >>> ends([1.0, 2.0, 3.0])
    Ends(start=1.0, end=3.0, window=1)
    """
    if not values:
        return Ends(math.nan, math.nan, 0)
    window = tenth(len(values))
    return Ends(mean(values[:window]), mean(values[-window:]), window)


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of independent values; 0 for fewer than two.

    >>> standard_error([0.0, 2.0])
    1.0
    """
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    variance = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def mean_and_margin(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent differences in [-1, 1] and half the width of its normal 95% interval.

    The margin of fewer than two values is NaN; of equal ones it is not 0, see :func:`paired_variance`.

    >>> mean_and_margin([0.0, 2.0])
    (1.0, 1.96)
    """
    return mean(values), 1.96 * math.sqrt(paired_variance(values)) if len(values) > 1 else math.nan


def paired_variance(differences: Sequence[float]) -> float:
    r"""Variance of the mean of differences in [-1, 1] over problems; never 0.

    Where all problems came out alike, as where both policies solve all of them, the sample has no variance,
    and their mean is uncertain all the same: then half a problem is added to each of the four outcomes of a
    pair, as in the interval of Agresti and Min.

    Args:
        differences: one for each problem.

    Example:
        >>> round(paired_variance([0.0] * 28) ** 0.5, 3), paired_variance([0.0, 1.0])
        (0.033, 0.25)

    References:
        Agresti and Min, Simple improved confidence intervals for comparing matched proportions, Statistics in
        Medicine 24, 2005.
    """
    error = standard_error(differences)
    if error > 1e-9:
        return error * error
    count = len(differences) + 2
    square = (sum(value * value for value in differences) + 1) / count
    return (square - (sum(differences) / count) ** 2) / count


class Ratio(NamedTuple):
    """A ratio of two means and its 95% interval."""

    value: float
    low: float
    high: float


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Ratio:
    r"""The ratio of the means of paired positive values, with its 95% interval by Student's t.

    The mean of the ratios of each pair is another number: where ``below`` varies it is larger, without
    limit. The interval is that of the logarithm, to first order in both means:

    .. math::
        \frac{\bar a}{\bar b} \exp\Bigl(\pm t_{n-1} \, s / \sqrt n\Bigr), \qquad
        s = \text{standard deviation of } \frac{a_i}{\bar a} - \frac{b_i}{\bar b}

    Its ends are positive, and those of the inverse ratio are their inverses.

    Args:
        above, below: at least two values each; those of one pair (seed, world) stand at the same place.

    Raises:
        ValueError: fewer than two pairs, or a mean that is not positive.

    Examples:
        >>> [round(x, 3) for x in ratio_of_means([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])]
        [2.0, 2.0, 2.0]
        >>> [round(x, 3) for x in ratio_of_means([4.0, 4.0, 4.0], [1.0, 2.0, 3.0])]
        [2.0, 0.578, 6.926]
    """
    if len(above) != len(below) or len(above) < 2:
        raise ValueError(f"{len(above)} values over {len(below)}: a ratio of means needs two pairs or more")
    top, bottom = mean(above), mean(below)
    if top <= 0 or bottom <= 0:
        raise ValueError(f"means of {top:g} over {bottom:g}: the interval is one of positive values")
    error = standard_error([a / top - b / bottom for a, b in zip(above, below, strict=True)])
    half = t_bound(0.05, len(above) - 1) * error
    return Ratio(top / bottom, top / bottom * math.exp(-half), top / bottom * math.exp(half))


def pass_at_k(correct: Sequence[Sequence[float]], k: int) -> list[float]:
    r"""For each problem, the chance that at least one of ``k`` completions is correct, without bias.

    .. math::
        \mathrm{pass@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

    The mean over all choices of k among a problem's n samples; no other unbiased estimate from the samples
    has less variance.

    Args:
        correct: ``[P, n]``, for each of P problems 1 or True where a sample is correct.
        k: from 1 to n.

    Returns:
        One number per problem. Their mean is pass@k.

    Raises:
        ValueError: ``k`` is outside 1 to n.

    Examples:
        >>> pass_at_k([[1, 0, 0, 0], [0, 0, 0, 0]], 2)
        [0.5, 0.0]

    References:
        Chen et al., Evaluating Large Language Models Trained on Code, 2021, arXiv:2107.03374.
    """
    n = len(correct[0])
    if not 1 <= k <= n:
        raise ValueError(f"k must be 1 to {n}, the number of completions per problem, not {k}")
    wrong = (n - round(sum(problem)) for problem in correct)
    return [1.0 - math.comb(count, k) / math.comb(n, k) for count in wrong]


def wilson(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share of ``count`` independent trials; honest at 0 and 1 too.

    Example:
        >>> [round(x, 3) for x in wilson(0.0, 50)]
        [0.0, 0.071]
    """
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of any false alarm among them all stays below the level. NaN stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    ranked = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(ranked):
        highest = max(highest, min(1.0, p * (len(ranked) - rank)))
        corrected[index] = highest
    return corrected

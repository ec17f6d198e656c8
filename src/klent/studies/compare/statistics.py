"""What can be told from a few seeds: paired differences, honest intervals, and "no difference".

Arms are compared under the same seeds, which share training prompts and held-out problems, so every
difference is taken within a seed and within a problem. Two questions are kept apart:

- *the method*: would it do better with other seeds, too? The noise is that of whole training runs.
- *these runs*: are the policies that were trained here different? The noise is that of the problems alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from klent.kit.student import f_above, t_bound, t_two_sided

Scores = Mapping[int, NDArray[np.float64]]
"""Seed -> one number for each held-out problem, in the task's order."""

LEVEL = 0.05
DRAWS = 4000


@dataclass(frozen=True)
class Contrast:
    """One arm against the first.

    Attributes:
        arm: whose.
        seeds: how many seeds both arms have.
        difference: the mean over seeds and problems, arm minus first arm.
        low, high: 95% interval for the method; NaN with one seed.
        p: two-sided, of "the method makes no difference"; NaN with one seed.
        p_holm: the same, corrected for the number of arms.
        df: degrees of freedom of ``p`` and of the interval; 0 with one seed.
        own: whether the noise is this arm's own, since its differences vary more than the other arms'.
        runs_low, runs_high: 95% interval for these very runs.
        runs_p: two-sided, of "these policies do equally well on such problems".
    """

    arm: str
    seeds: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    df: int
    own: bool
    runs_low: float
    runs_high: float
    runs_p: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference`` for the method; ``one seed``: nothing can be said."""
        if math.isnan(self.p):
            return "one seed"
        if self.p_holm >= LEVEL:
            return "no difference"
        return "better" if self.difference > 0 else "worse"


def pass_at_k(correct: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Chance that at least one of ``k`` completions is correct, for every problem, without bias.

    .. math:: 1 - \\binom{n - c}{k} / \\binom{n}{k}

    Args:
        correct: ``[P, n]``, 1 where a completion is correct.
        k: 1 to n.

    Returns:
        ``[P]``.

    Examples:
        >>> pass_at_k(np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), 2)
        array([0.5, 0. ])
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be 1 to {n}, the number of completions a problem, not {k}")
    wrong = n - correct.sum(axis=1).round().astype(int)
    return np.array([1.0 - math.comb(int(w), k) / math.comb(n, k) for w in wrong])


def contrasts(scores: Mapping[str, Scores], *, seed: int = 0) -> list[Contrast]:
    """Every arm against the first one, corrected for how many there are.

    With arms as treatments and seeds as blocks, the noise of a difference of two seed means is estimated from
    how arms and seeds fail to add up, pooled over all arms:

    .. math:: \\hat\\sigma^2 = \\frac{\\sum_{as} (m_{as} - m_{a\\cdot} - m_{\\cdot s} + m)^2}{(A - 1)(S - 1)},
        \\qquad t = \\frac{m_{a\\cdot} - m_{1\\cdot}}{\\sqrt{2 \\hat\\sigma^2 / S}}

    With two arms this is the paired t-test over seeds. An arm whose differences vary clearly more than that
    (F test at 5%) is judged by its own; the variance is never taken to be below what sampling the problems
    alone would give.

    Args:
        scores: arm -> seed -> score of each problem. The first arm is what the others are compared with. An
            arm that lacks some of its seeds is compared on those that it has, by its own noise.
        seed: of the resampling of problems.

    Returns:
        One contrast for every arm but the first that shares a seed with it.
    """
    first, *others = scores
    rng = np.random.default_rng(seed)
    whole = [arm for arm in scores if set(scores[arm]) == set(scores[first])]
    pooled = residual_variance([[scores[arm][s].mean() for s in scores[first]] for arm in whole])
    found = [
        _contrast(arm, scores[arm], scores[first], pooled if arm in whole else (math.nan, 0), rng)
        for arm in others
        if set(scores[arm]) & set(scores[first])
    ]
    corrected = holm([item.p for item in found])
    return [
        Contrast(**{**vars(item), "p_holm": p})  # frozen: made anew
        for item, p in zip(found, corrected, strict=True)
    ]


def residual_variance(means: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Variance that arms and seeds leave when they add up, and its degrees of freedom; ``means[arm][seed]``.

    >>> residual_variance([[0.0, 1.0], [2.0, 1.0]])
    (1.0, 1)
    """
    table = np.array(means, dtype=float)
    df = (table.shape[0] - 1) * (table.shape[1] - 1)
    if df <= 0:
        return math.nan, 0
    left = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float((left**2).sum() / df), df


def _contrast(
    arm: str, scores: Scores, first: Scores, pooled: tuple[float, int], rng: np.random.Generator
) -> Contrast:
    """One arm against the first; the correction comes after, when all are known."""
    seeds = [s for s in first if s in scores]
    apart = [scores[s] - first[s] for s in seeds]
    by_seed = np.array([d.mean() for d in apart])
    difference, count = float(by_seed.mean()), len(seeds)
    variance, df, own = _variance(by_seed, pooled)
    floor = sum(float(d.var(ddof=1)) / len(d) for d in apart if len(d) > 1) / count
    error = math.sqrt(max(variance, floor) / count) if df else math.nan
    runs_low, runs_high = bootstrap_problems(apart, rng)
    return Contrast(
        arm=arm,
        seeds=count,
        difference=difference,
        low=difference - t_bound(LEVEL, df) * error if df else math.nan,
        high=difference + t_bound(LEVEL, df) * error if df else math.nan,
        p=_p_value(difference, error, df),
        p_holm=math.nan,
        df=df,
        own=own,
        runs_low=runs_low,
        runs_high=runs_high,
        runs_p=permute_problems(apart, rng),
    )


def _variance(by_seed: NDArray[np.float64], pooled: tuple[float, int]) -> tuple[float, int, bool]:
    """Variance of one seed's difference, its degrees of freedom, and whether it is the arm's own."""
    if len(by_seed) < 2:
        return math.nan, 0, False
    own, df = float(by_seed.var(ddof=1)), len(by_seed) - 1
    shared, shared_df = 2 * pooled[0], pooled[1]
    if not shared_df:
        return own, df, True
    if shared_df > df and own > 0 and f_above(own / shared if shared else math.inf, df, shared_df) < LEVEL:
        return own, df, True
    return shared, shared_df, False


def _p_value(difference: float, error: float, df: int) -> float:
    if not df:
        return math.nan
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return t_two_sided(difference / error, df)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the chance of any false alarm among them all stays below the level. NaN stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[place] = highest
    return corrected


def bootstrap_problems(
    apart: Sequence[NDArray[np.float64]], rng: np.random.Generator, draws: int = DRAWS
) -> tuple[float, float]:
    """95% interval of the mean difference when each seed's problems are drawn again, and the runs are kept.

    Args:
        apart: for each seed, the difference at each problem.
        rng: randomness.
        draws: how often.
    """
    total = np.zeros(draws)
    for d in apart:
        total += d[rng.integers(len(d), size=(draws, len(d)))].mean(axis=1)
    low, high = np.quantile(total / len(apart), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def permute_problems(
    apart: Sequence[NDArray[np.float64]], rng: np.random.Generator, draws: int = DRAWS
) -> float:
    """Two-sided p of a paired permutation test: at each problem the two arms' names are exchanged or not.

    Args:
        apart: for each seed, the difference at each problem.
        rng: randomness.
        draws: how many exchanges; the observed one counts as one more.
    """
    weighted = np.concatenate([d / (len(d) * len(apart)) for d in apart])
    moved = weighted[weighted != 0]  # an exchange of equals changes nothing
    seen = abs(moved.sum())
    signs = rng.integers(0, 2, size=(draws, len(moved)), dtype=np.int8) * 2 - 1
    as_far = int((np.abs(signs @ moved) >= seen - 1e-12).sum())
    return (as_far + 1) / (draws + 1)

"""What a few seeds can show: paired differences, honest intervals, and "no difference".

Arms are compared under the same seeds, which share training prompts and held-out problems, so every
difference is taken within a seed and within a problem. Two questions are kept apart:

- *the method*: would it also do better with other seeds? The noise is that of whole training runs.
- *these runs*: do the trained policies differ? The noise is that of the problems alone.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from klent.kit.statistics import Z95, holm, paired_variance
from klent.kit.student import f_above, t_bound, t_two_sided

Scores = Mapping[int, NDArray[np.float64]]
"""Seed -> one number for each held-out problem, in the task's order."""

LEVEL = 0.05
DRAWS = 4000
TINY = 1e-12


@dataclass(frozen=True)
class Contrast:
    """One arm against the first.

    Attributes:
        arm: the arm that is compared with the first.
        seeds: how many seeds both arms have.
        difference: the mean over seeds and problems, arm minus first arm.
        low, high: 95% interval for the method; NaN with one seed, and for the same runs.
        p: two-sided, for "the method makes no difference"; NaN with one seed, and for the same runs.
        p_holm: the same, corrected for the number of arms.
        df: degrees of freedom of ``p`` and of the interval; 0 with one seed.
        own: whether the noise is estimated from this arm alone, because it varies more than the others.
        runs_low, runs_high: 95% interval for these runs alone.
        runs_p: two-sided, for "these policies do equally well on such problems".
        same: whether its runs are the first arm's, number by number: then there is nothing to estimate.
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
    same: bool = False

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference`` for the method; ``one seed``: undecidable; ``same runs``."""
        if self.same:
            return "same runs"
        if math.isnan(self.p):
            return "one seed"
        if self.p_holm >= LEVEL:
            return "no difference"
        return "better" if self.difference > 0 else "worse"


def contrasts(scores: Mapping[str, Scores], *, seed: int = 0, twins: Collection[str] = ()) -> list[Contrast]:
    """Every arm against the first one, corrected for how many there are.

    With arms as treatments and seeds as blocks, the noise of a difference of two seed means is estimated from
    how arms and seeds fail to add up, pooled over all arms:

    .. math:: \\hat\\sigma^2 = \\frac{\\sum_{as} (m_{as} - m_{a\\cdot} - m_{\\cdot s} + m)^2}{(A - 1)(S - 1)},
        \\qquad t = \\frac{m_{a\\cdot} - m_{1\\cdot}}{\\sqrt{2 \\hat\\sigma^2 / S}}

    With two arms this is the paired t-test over seeds. An arm whose differences vary significantly more than
    that (F test at 5%) is judged by its own variance; the variance is never taken to be below what sampling
    the problems alone would give, see :func:`klent.kit.statistics.paired_variance`.

    Args:
        scores: arm -> seed -> score of each problem, in [0, 1]. The others are compared with the first arm. An
            arm that lacks some of the seeds is compared on those that it has, by its own noise.
        seed: for resampling the problems.
        twins: arms whose runs are the first arm's, number by number. They say nothing of the noise of a run,
            and are not counted in Holm's correction.

    Returns:
        One contrast for every other arm that shares a seed with the first.
    """
    first, *others = scores
    rng = np.random.default_rng(seed)
    whole = [arm for arm in scores if set(scores[arm]) == set(scores[first]) and arm not in twins]
    pooled = residual_variance([[scores[arm][s].mean() for s in scores[first]] for arm in whole])
    uncorrected = [
        _same(arm, len(set(scores[arm]) & set(scores[first])))
        if arm in twins
        else _contrast(arm, scores[arm], scores[first], pooled if arm in whole else (math.nan, 0), rng)
        for arm in others
        if set(scores[arm]) & set(scores[first])
    ]
    corrected = holm([contrast.p for contrast in uncorrected])
    return [replace(contrast, p_holm=p) for contrast, p in zip(uncorrected, corrected, strict=True)]


def _same(arm: str, seeds: int) -> Contrast:
    """An arm whose runs are the first arm's."""
    nan = math.nan
    return Contrast(arm, seeds, 0.0, nan, nan, nan, nan, 0, False, nan, nan, nan, same=True)


def residual_variance(means: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Variance left by an additive model of arms and seeds, and its degrees of freedom; ``means[arm][seed]``.

    >>> residual_variance([[0.0, 1.0], [2.0, 1.0]])
    (1.0, 1)
    """
    table = np.array(means, dtype=float)
    df = (table.shape[0] - 1) * (table.shape[1] - 1)
    if df <= 0:
        return math.nan, 0
    residuals = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float((residuals**2).sum() / df), df


def _contrast(
    arm: str, scores: Scores, first: Scores, pooled: tuple[float, int], rng: np.random.Generator
) -> Contrast:
    """One arm against the first, before Holm's correction, which needs every arm."""
    seeds = [s for s in first if s in scores]
    apart = [scores[s] - first[s] for s in seeds]
    by_seed = np.array([d.mean() for d in apart])
    difference, count = float(by_seed.mean()), len(seeds)
    variance, df, own = _variance(by_seed, pooled)
    # Of a seed's mean alone, as a table keeps it, nothing is known of the noise of its problems.
    floor = sum(paired_variance(d.tolist()) for d in apart if len(d) > 1) / count
    error = math.sqrt(max(variance, floor) / count) if df else math.nan
    runs_low, runs_high = bootstrap_problems(apart, rng)
    if runs_high - runs_low < TINY:  # resampling problems that came out alike shows no uncertainty
        half = Z95 * math.sqrt(floor / count) if floor else math.nan
        runs_low, runs_high = np.clip([difference - half, difference + half], -1.0, 1.0).tolist()
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
    """Variance of one seed's difference, its degrees of freedom, and whether it is from this arm alone."""
    if len(by_seed) < 2:
        return math.nan, 0, False
    of_arm, df = float(by_seed.var(ddof=1)), len(by_seed) - 1
    shared, shared_df = 2 * pooled[0], pooled[1]
    if not shared_df:
        return of_arm, df, True
    ratio = of_arm / shared if shared else math.inf
    if shared_df > df and of_arm > 0 and f_above(ratio, df, shared_df) < LEVEL:
        return of_arm, df, True
    return shared, shared_df, False


def _p_value(difference: float, error: float, df: int) -> float:
    if not df:
        return math.nan
    return t_two_sided(difference / error, df)


def bootstrap_problems(
    apart: Sequence[NDArray[np.float64]], rng: np.random.Generator, draws: int = DRAWS
) -> tuple[float, float]:
    """95% interval of the mean difference when each seed's problems are resampled and the runs are kept.

    Args:
        apart: for each seed, the difference at each problem.
        rng: randomness.
        draws: number of resamples.
    """
    total = np.zeros(draws)
    for d in apart:
        total += d[rng.integers(len(d), size=(draws, len(d)))].mean(axis=1)
    low, high = np.quantile(total / len(apart), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def permute_problems(
    apart: Sequence[NDArray[np.float64]], rng: np.random.Generator, draws: int = DRAWS
) -> float:
    """Two-sided p of a paired permutation test: at each problem the two arms are swapped or not.

    Args:
        apart: for each seed, the difference at each problem.
        rng: randomness.
        draws: number of random swaps; the observed assignment counts as one more.
    """
    weighted = np.concatenate([d / (len(d) * len(apart)) for d in apart])
    moved = weighted[weighted != 0]  # swapping equals changes nothing
    observed = abs(moved.sum())
    signs = rng.integers(0, 2, size=(draws, len(moved)), dtype=np.int8) * 2 - 1
    as_far = int((np.abs(signs @ moved) >= observed - 1e-12).sum())
    return (as_far + 1) / (draws + 1)

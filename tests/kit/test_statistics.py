"""Means, intervals, corrections and pass@k against enumeration and definitions."""

import itertools
import math
import statistics

import numpy as np
import pytest
from oracles.wilson import wilson_by_root

from klent.kit.statistics import (
    ends,
    holm,
    mean,
    mean_and_margin,
    median,
    pass_at_k,
    ratio_of_means,
    standard_error,
    tenth,
    wilson,
)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 19, 20, 199, 200, 5000])
def test_ends_are_means_of_a_tenth_from_1_to_20(count):
    values = [float((7 * i) % 31) for i in range(count)]
    window = min(20, count // 10) or 1
    assert ends(values) == (np.mean(values[:window]), np.mean(values[count - window :]), window)
    assert tenth(count) == window


def test_nothing_has_no_mean():
    assert math.isnan(mean([]))
    assert ends([]).window == 0
    assert math.isnan(ends([]).end)


def test_errors_and_margins_by_the_library():
    values = [0.5, 0.0, 1.0, 0.25]
    expected = statistics.stdev(values) / math.sqrt(4)
    assert standard_error(values) == pytest.approx(expected)
    assert mean_and_margin(values) == pytest.approx((statistics.fmean(values), 1.96 * expected))
    assert standard_error([3.0]) == 0.0
    assert math.isnan(mean_and_margin([3.0])[1])
    assert median([3.0, 1.0, 2.0, 9.0]) == statistics.median([3.0, 1.0, 2.0, 9.0])


@pytest.mark.parametrize(("share", "count"), [(0.0, 20), (0.3, 50), (0.5, 7), (1.0, 100)])
def test_wilson_solves_its_equation(share, count):
    low, high = wilson(share, count)
    assert (low, high) == pytest.approx(wilson_by_root(share, count), abs=1e-9)


@pytest.mark.parametrize("right", [0, 1, 3, 6])
def test_pass_at_k_is_the_share_of_all_choices_of_k(right):
    row = [1.0] * right + [0.0] * (6 - right)
    for k in range(1, 7):
        chosen = [max(some) for some in itertools.combinations(row, k)]
        assert pass_at_k([row], k)[0] == pytest.approx(sum(chosen) / len(chosen))


def test_pass_at_k_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="k must be 1 to 3"):
        pass_at_k([[0.0] * 3] * 2, 4)


def test_holm_by_its_definition():
    """The smallest level at which a step-down procedure rejects, found by trying levels."""
    p_values = [0.003, 0.2, 0.012, 0.04, 0.012]

    def rejected(level):
        order = sorted(range(5), key=p_values.__getitem__)
        out = set()
        for rank, place in enumerate(order):
            if p_values[place] > level / (5 - rank) + 1e-12:
                break
            out.add(place)
        return out

    corrected = holm(p_values)
    for level in np.arange(0.0005, 1, 0.001):
        assert {i for i in range(5) if corrected[i] <= level} == rejected(level)
    assert math.isnan(holm([0.1, math.nan])[1])


def test_the_interval_of_a_ratio_of_means_covers_it():
    generator = np.random.default_rng(0)
    common, own, other = (generator.normal(size=(400, 20)) for _ in range(3))
    above, below = 40 * np.exp(0.3 * (common + own)), 10 * np.exp(0.3 * (common + other))  # true ratio 4
    found = [ratio_of_means(a, b) for a, b in zip(above.tolist(), below.tolist(), strict=True)]
    covered = sum(low <= 4 <= high for _, low, high in found) / len(found)
    assert 0.92 < covered < 0.98
    unpaired = [ratio_of_means(a, b[::-1]) for a, b in zip(above.tolist(), below.tolist(), strict=True)]
    assert sum(x.high / x.low for x in found) < sum(
        x.high / x.low for x in unpaired
    )  # pairs share their luck


def test_a_ratio_of_means_needs_pairs_of_positive_values():
    for above, below in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="two pairs or more"):
            ratio_of_means(above, below)
    with pytest.raises(ValueError, match="one of positive values"):
        ratio_of_means([1.0, 2.0], [0.0, 0.0])

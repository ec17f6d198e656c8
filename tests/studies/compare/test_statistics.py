"""The comparison's statistics against enumeration, mpmath, and worlds in which the truth is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from klent.studies.compare.statistics import (
    LEVEL,
    bootstrap_problems,
    contrasts,
    permute_problems,
    residual_variance,
)

PROBLEMS = 120


def test_residual_variance_is_that_of_least_squares():
    """The residual of a regression on arm and seed indicators, which knows nothing of the closed form."""
    table = np.random.default_rng(0).normal(size=(4, 3))
    design = [
        [float(a == i) for i in range(4)] + [float(s == j) for j in range(2)]
        for a in range(4)
        for s in range(3)
    ]
    _, rest, *_ = np.linalg.lstsq(np.array(design), table.ravel(), rcond=None)
    variance, df = residual_variance(table.tolist())
    assert (variance, df) == (pytest.approx(float(rest[0]) / 6), 6)
    assert math.isnan(residual_variance([[1.0], [2.0]])[0])


def test_two_arms_are_the_paired_t_test():
    """By hand: differences 0.1, 0.2, 0.3 have mean 0.2, standard error 0.1 / sqrt 3; t = 3.4641, df = 2."""
    base = {s: np.full(PROBLEMS, 0.4) for s in range(3)}
    other = {s: np.full(PROBLEMS, 0.5 + 0.1 * s) for s in range(3)}
    (found,) = contrasts({"a": base, "b": other})
    assert found.difference == pytest.approx(0.2)
    assert found.p == pytest.approx(0.07418, abs=1e-5)
    assert found.p_holm == found.p
    assert found.low == pytest.approx(0.2 - 4.30265 * 0.1 / math.sqrt(3), abs=1e-5)
    assert found.verdict == "no difference"


def test_the_means_of_seeds_alone_are_judged_by_the_seeds():
    """As a table keeps them: one number for each seed, of whose problems nothing is known."""
    scores = {"a": [0.50, 0.52, 0.55], "b": [0.58, 0.59, 0.66]}
    by_seed = {
        arm: {s: np.array([value]) for s, value in enumerate(values)} for arm, values in scores.items()
    }
    (item,) = contrasts(by_seed)
    expected = stats.ttest_rel(scores["b"], scores["a"])
    low, high = expected.confidence_interval()
    assert (item.low, item.high, item.p) == pytest.approx((low, high, expected.pvalue))
    assert math.isnan(item.runs_low)
    assert math.isnan(item.runs_high)


def test_the_permutation_test_against_all_exchanges():
    rng = np.random.default_rng(1)
    apart = [rng.normal(0.4, 1, size=6), rng.normal(0.4, 1, size=5)]
    weighted = np.concatenate([d / (len(d) * 2) for d in apart])
    every = [abs(np.dot(signs, weighted)) for signs in itertools.product([-1, 1], repeat=11)]
    exact = np.mean(np.array(every) >= abs(weighted.sum()) - 1e-12)
    assert permute_problems(apart, np.random.default_rng(0), draws=20000) == pytest.approx(exact, abs=0.012)


def test_the_bootstrap_against_every_draw():
    """Three problems in each of two seeds: all 27 x 27 draws, equally likely."""
    apart = [np.array([0.0, 0.5, 1.0]), np.array([-1.0, 0.0, 0.25])]
    draws = [[np.mean(pick) for pick in itertools.product(d, repeat=3)] for d in apart]
    means = [(one + other) / 2 for one in draws[0] for other in draws[1]]
    low, high = bootstrap_problems(apart, np.random.default_rng(0), draws=40000)
    assert low == pytest.approx(np.quantile(means, 0.025), abs=0.03)
    assert high == pytest.approx(np.quantile(means, 0.975), abs=0.03)


def world(rng, effects, seeds, *, run_noise=0.05, problem_noise=0.25):
    """Scores of arms whose runs differ by chance, on problems that are hard or easy for everyone."""
    scores = {}
    hard = {s: rng.normal(0.5, 0.3, PROBLEMS) for s in range(seeds)}
    luck = rng.normal(0, 0.03, seeds)  # of the seed, the same for all arms
    for arm, effect in effects.items():
        scores[arm] = {
            s: hard[s] + luck[s] + effect + rng.normal(0, run_noise) + rng.normal(0, problem_noise, PROBLEMS)
            for s in range(seeds)
        }
    return scores


def shares(effects, seeds, worlds=400, **options):
    """How often any arm, and how often the last arm, is told from the first; and how often intervals hold."""
    rng = np.random.default_rng(7)
    any_told = last_told = held = 0
    for _ in range(worlds):
        found = contrasts(world(rng, effects, seeds, **options))
        told = [item for item in found if item.verdict in ("better", "worse")]
        any_told += bool(told)
        last_told += found[-1].verdict == "better"
        held += found[-1].low <= list(effects.values())[-1] <= found[-1].high
    return any_told / worlds, last_told / worlds, held / worlds


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """The resampling of problems is not what these tests are about, and it is their cost."""
    monkeypatch.setattr("klent.studies.compare.statistics.bootstrap_problems", lambda *_: (0.0, 0.0))
    monkeypatch.setattr("klent.studies.compare.statistics.permute_problems", lambda *_: 1.0)


@pytest.mark.parametrize(("arms", "seeds"), [(2, 3), (2, 8), (5, 3), (9, 3)])
def test_equal_arms_are_told_apart_in_about_the_nominal_share(arms, seeds):
    """400 worlds: 5% are 20, give or take 9 at two standard errors. Never seldom told, never often."""
    effects = {f"arm{i}": 0.0 for i in range(arms)}
    any_told, _, held = shares(effects, seeds)
    assert 0.005 <= any_told <= LEVEL + 0.03
    assert 0.92 <= held <= 0.985


def test_different_arms_are_told_apart():
    effects = {**{f"arm{i}": 0.0 for i in range(5)}, "good": 0.25}
    _, found, held = shares(effects, 3)
    assert found > 0.9
    assert 0.92 <= held <= 0.985


def test_taking_runs_for_problems_would_raise_false_alarms():
    """The control: the paired test over problems alone calls equal methods different most of the time."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(200):
        scores = world(rng, {"a": 0.0, "b": 0.0}, 3)
        apart = np.concatenate([scores["b"][s] - scores["a"][s] for s in range(3)])
        alarms += abs(apart.mean()) / (apart.std(ddof=1) / math.sqrt(len(apart))) > 1.96
    assert alarms / 200 > 0.3


def test_an_unruly_arm_is_judged_by_its_own_spread():
    rng = np.random.default_rng(0)
    scores = world(rng, {f"arm{i}": 0.0 for i in range(8)}, 4, run_noise=0.01)
    wild = {s: scores["arm0"][s] + shift for s, shift in enumerate([0.5, -0.4, 0.6, -0.1])}
    found = {item.arm: item for item in contrasts({**scores, "wild": wild})}
    assert found["wild"].own
    assert found["wild"].df == 3
    assert found["wild"].verdict == "no difference"


def test_one_seed_says_nothing_about_the_method():
    (found,) = contrasts({"a": {0: np.zeros(10)}, "b": {0: np.ones(10)}})
    assert found.verdict == "one seed"
    assert math.isnan(found.low)


def test_an_arm_without_some_seeds_is_compared_on_the_others():
    rng = np.random.default_rng(5)
    scores = world(rng, {"a": 0.0, "b": 0.0, "c": 0.0}, 4)
    del scores["c"][2]
    found = {item.arm: item for item in contrasts(scores)}
    assert (found["c"].seeds, found["c"].df, found["b"].df) == (3, 2, 3)


def test_identical_arms_differ_by_nothing():
    base = {s: np.full(10, 0.1 * s) for s in range(3)}
    (found,) = contrasts({"a": base, "b": dict(base)})
    assert (found.difference, found.p, found.verdict) == (0.0, 1.0, "no difference")


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_problems_that_all_come_out_alike_leave_an_interval(gap, monkeypatch):
    """By hand: 28 problems and two more halves each way, (28 gap² + 1) / 30 - (28 gap / 30)², over 30."""
    monkeypatch.setattr("klent.studies.compare.statistics.bootstrap_problems", bootstrap_problems)
    first, other = ({s: np.full(28, value) for s in range(3)} for value in (0.0, gap))
    (found,) = contrasts({"a": first, "b": other})
    of_seed = ((28 * gap * gap + 1) / 30 - (28 * gap / 30) ** 2) / 30
    error = math.sqrt(of_seed / 3)
    assert found.high - found.low == pytest.approx(2 * 4.30265 * error, rel=1e-5)
    assert (found.runs_low, found.runs_high) == pytest.approx(
        (gap - 1.96 * error, min(1.0, gap + 1.96 * error)), abs=1e-4
    )
    assert found.p > 0


def test_the_same_runs_are_no_evidence_of_how_much_runs_differ():
    """A twin agrees with the first arm to the last digit; counted in, it would halve the noise of the others."""
    rng = np.random.default_rng(2)
    scores = world(rng, {"a": 0.0, "b": 0.0, "c": 0.0}, 4)
    with_twin = {"a": scores["a"], "twin": dict(scores["a"]), "b": scores["b"], "c": scores["c"]}
    found = {item.arm: item for item in contrasts(with_twin, twins=["twin"])}
    alone = {item.arm: item for item in contrasts(scores)}
    for arm in ("b", "c"):
        assert (found[arm].p_holm, found[arm].low) == (alone[arm].p_holm, alone[arm].low)
    assert found["twin"].verdict == "same runs"
    assert math.isnan(found["twin"].low)

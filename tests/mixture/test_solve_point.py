"""The scalar search inside the CPU solver, fed in float64: its place, its log Z and its own estimate."""

import math

import numpy as np
import pytest
from oracles import mixture as oracle

from klent.mixture.chernoff import Ends, Point, _cumulants

Rows = tuple[np.ndarray, np.ndarray]


def look(policy: np.ndarray, target: np.ndarray, s: float, count: int) -> tuple[float, list[float]]:
    """log Z and the first cumulants of l at s."""
    p, t = oracle.normalise(policy), oracle.normalise(target)
    weights = np.exp((1 - s) * p + s * t)
    q, mean = weights / weights.sum(), np.sum(weights * (t - p)) / weights.sum()
    second, third, fourth = (np.sum(q * (t - p - mean) ** k) for k in (2, 3, 4))
    numbers = [mean, second, third, fourth - 3 * second**2]
    return float(np.log(weights.sum())), [float(x) for x in numbers[:count]]


def imbalance(policy: np.ndarray, target: np.ndarray, s: float) -> float:
    q = oracle.mixture(policy, target, 1 - s)
    p, t = (np.exp(oracle.normalise(x)) for x in (policy, target))
    return abs(oracle.kl(q, p) - oracle.kl(q, t))


def alike(seed: int) -> Rows:
    """Zipf's law, the target's steeper by a little: the root lies 0.01 to 0.05 from the middle."""
    generator = np.random.default_rng(seed)
    common = -1.5 * np.log(generator.permutation(3000) + 1.0)
    noise = generator.standard_normal((2, 3000))
    return common + 0.3 * noise[0], generator.uniform(1.1, 1.2) * common + 0.5 * noise[1]


def unlike(seed: int) -> Rows:
    generator = np.random.default_rng(seed)
    policy, target = 6 * generator.standard_normal((2, 6))
    return policy, target


def test_a_polynomial_of_degree_six_is_found_out() -> None:
    """Value and four derivatives at 1/2, and 0 at both ends: the lowest point of what numpy makes of them."""
    log_z, cumulants = -0.16, [-0.15, 1.1, 0.6, 0.9]
    rows = [[math.factorial(k) if k == order else 0 for k in range(7)] for order in range(5)]
    rows += [[t**k for k in range(7)] for t in (-0.5, 0.5)]
    curve = np.polynomial.Polynomial(np.linalg.solve(rows, [log_z, *cumulants, 0, 0]))
    lowest = min((t for t in curve.deriv().roots().real if abs(t) < 0.5), key=curve)
    point = Point(1e-9, log_z, cumulants)
    assert abs(lowest) > 0.1
    assert point.s == pytest.approx(0.5 + lowest, abs=1e-9)
    assert point.log_z == pytest.approx(curve(lowest), abs=1e-12)


def test_sums_over_shifted_and_scaled_logits_are_read() -> None:
    policy, target = alike(0)
    a, b = policy - policy.max(), target - target.max()
    half = math.log2(math.e) / 2
    for s, count in ((0.5, 4), (0.3, 3)):
        weights = np.exp((1 - s) * a + s * b)
        sums = [float(np.sum(weights * (half * (b - a)) ** k)) for k in range(count + 1)]
        ends = Ends(float(np.log(np.exp(a).sum())), float(np.log(np.exp(b).sum())))
        log_z, cumulants = _cumulants(sums, ends, s)
        exact, numbers = look(policy, target, s, count)
        assert log_z == pytest.approx(exact, abs=1e-12)
        assert cumulants == pytest.approx(numbers, rel=1e-8)


def test_a_step_out_of_the_bracket_is_replaced_by_its_middle() -> None:
    point = Point(1e-6, -1.0, [-3.0, 0.5, 0.0, 0.0])
    point.done, point.s = False, 0.8
    point.visit(-0.5, [5.0, 0.1, 0.0])
    assert point.s == pytest.approx(0.65)
    point.visit(-0.5, [-5.0, 0.1, 0.0])
    assert point.s == pytest.approx(0.725)
    assert not point.done


def test_one_sweep_is_enough_for_rows_that_are_alike() -> None:
    enough, far = 0, 0.0
    for seed in range(20):
        policy, target = alike(seed)
        point = Point(1e-6, *look(policy, target, 0.5, 4))
        true = imbalance(policy, target, point.s)
        assert true <= point.residual
        assert point.residual < 2e-4
        assert point.log_z == pytest.approx(
            oracle.log_affinity(policy, target, 1 - point.s), abs=true / 10 + 1e-9
        )
        enough += point.sure
        far = max(far, abs(point.s - 0.5))
    assert enough >= 10
    assert far > 0.02


def test_what_is_called_sure_is() -> None:
    """The estimate is made for long rows; six tokens may exceed it, but not by much."""
    sure = 0
    for seed in range(120):
        policy, target = unlike(seed)
        point = Point(1e-5, *look(policy, target, 0.5, 4))
        if point.sure:
            sure += 1
            spread = np.std(oracle.normalise(target) - oracle.normalise(policy))
            assert imbalance(policy, target, point.s) <= 3e-5 * max(1, spread)
    assert sure > 5


def test_every_search_ends_at_the_root() -> None:
    sweeps = []
    for seed in range(120):
        policy, target = unlike(seed)
        point = Point(1e-6, *look(policy, target, 0.5, 4))
        while not point.done and point.sweeps < 40:
            point.visit(*look(policy, target, point.s, 3))
        assert point.sure
        assert imbalance(policy, target, point.s) <= 2 * point.residual + 1e-12
        affinity = oracle.log_affinity(policy, target, oracle.chernoff(policy, target))
        assert point.log_z == pytest.approx(affinity, abs=1e-8)
        sweeps.append(point.sweeps)
    assert np.median(sweeps) <= 4
    assert max(sweeps) <= 10


def test_a_visit_beside_the_root_tells_log_z_at_it() -> None:
    policy, target = unlike(3)
    s = 1 - oracle.chernoff(policy, target)
    point = Point(1e-6, *look(policy, target, 0.5, 4))
    point.done, point.tolerance, point.s = False, 1e-2, s + 1e-3
    point.visit(*look(policy, target, point.s, 3))
    assert point.sure
    assert point.s == pytest.approx(s, abs=1e-5)
    assert point.log_z == pytest.approx(oracle.log_affinity(policy, target, 1 - s), abs=1e-7)


def test_what_float32_cannot_hold_is_left_to_others() -> None:
    for log_z, cumulants in ((-math.inf, []), (0.0, [1.0, math.nan, 1.0, 1.0]), (math.nan, [0.0] * 4)):
        point = Point(1e-6, log_z, cumulants)
        assert point.done
        assert not point.sure
    policy, target = unlike(3)
    point = Point(1e-6, *look(policy, target, 0.5, 4))
    point.done = False
    point.visit(-math.inf, [])
    assert point.done
    assert not point.sure

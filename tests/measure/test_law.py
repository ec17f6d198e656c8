"""The online fit and its forecast: right where the law holds, silent where it says nothing."""

import math
import random

import pytest

from klent.kit.student import t_bound
from klent.measure.law import FLOOR, fit_law, forecast, law_metrics


def rows(steps, noise=0.01, rate=0.9, start=2.0, seed=0, **more):
    """Entropy falls by ``rate`` a step and reward follows 0.9 - 0.1 exp(H)."""
    rng = random.Random(seed)
    made = []
    for place in range(steps):
        entropy = start * rate**place
        reward = 0.9 - 0.1 * math.exp(entropy) + rng.gauss(0, noise)
        delta = -(1 - rate) * entropy
        row = {"policy/entropy": entropy, "reward/mean": reward, "policy/entropy_delta_predicted": delta}
        made.append({"step": place + 1, **row, **more})
    return made


def test_the_ceiling_lies_in_its_interval_about_as_often_as_it_says():
    inside = total = 0
    for seed in range(200):
        found = law_metrics(rows(12, noise=0.03, seed=seed))
        if "law/ceiling" in found:
            total += 1
            inside += found["law/ceiling_low"] <= 0.8 <= found["law/ceiling_high"]
    assert total > 180
    assert 0.90 <= inside / total <= 0.995


def test_the_floor_is_where_the_same_rate_leads():
    """2 * 0.9^n = 0.05 at n = 35.01, which is step 36.01 counted from 1."""
    found = forecast(rows(20, noise=0.0))
    assert found.floor_step == 37
    assert FLOOR == 0.05
    assert found.spent == pytest.approx(1 - (0.9**18 + 0.9**19) / (1 + 0.9))
    spent, rate, ceiling = found.sentence().split("; ")
    assert spent == "85% of the entropy spent, 0.29 nats per token left"
    assert rate == "at this rate 0.05 nats by step 37"
    assert ceiling == "predicted ceiling 0.80 (0.80 to 0.80)"


def test_the_covariance_sees_a_turn_before_the_entropy_does():
    steady = rows(20)
    faster = [row | {"policy/entropy_delta_predicted": -0.3 * row["policy/entropy"]} for row in steady[-3:]]
    assert forecast(steady[:-3] + faster).floor_step < forecast(steady).floor_step


@pytest.mark.parametrize(
    ("made", "absent"),
    [
        (rows(5), {"law/ceiling", "law/entropy_spent", "law/r2", "law/floor_step"}),
        (rows(20, noise=3.0, seed=3), {"law/ceiling"}),
        (rows(20, **{"thermostat/value": 0.1}), {"law/ceiling", "law/r2"}),
        (rows(20, rate=1.02), {"law/floor_step"}),
        (rows(20, rate=0.999), {"law/floor_step"}),
        (rows(8, rate=0.97), {"law/floor_step"}),  # further off than can be foreseen
        ([row | {"reward/mean": None} for row in rows(20)], {"law/ceiling", "law/r2"}),
        ([{"step": i} for i in range(1, 20)], {"law/ceiling", "law/entropy_spent"}),
    ],
)
def test_silent_where_nothing_can_be_said(made, absent):
    assert absent & set(law_metrics(made)) == set()


def test_the_interval_is_wider_when_residuals_follow_one_another():
    made = rows(24, noise=0.0)
    flicker = [r | {"reward/mean": r["reward/mean"] + 0.02 * (-1) ** i} for i, r in enumerate(made)]
    drift = [r | {"reward/mean": r["reward/mean"] + 0.02 * (-1) ** (i // 4)} for i, r in enumerate(made)]
    one, other = fit_law(flicker), fit_law(drift)
    assert one.echo == 0.0
    assert other.echo > 0.3
    assert other.margin > 1.3 * other.error * t_bound(0.05, 22)
    assert one.margin == pytest.approx(one.error * t_bound(0.05, 22))


@pytest.mark.parametrize(("freedom", "exact"), [(2, 4.3027), (4, 2.7764), (6, 2.4469), (30, 2.0423)])
def test_the_margin_is_a_tabled_quantile_times_the_standard_error(freedom, exact):
    fit = fit_law(rows(freedom + 2, noise=0.01, rate=0.8))
    widened = math.sqrt((1 + fit.echo) / (1 - fit.echo))
    assert fit.margin == pytest.approx(exact * fit.error * widened, rel=2e-5)

"""The fit as the report uses it, against NumPy and against data made to its law or against it."""

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest

from klent.kit.tables import Table
from klent.measure.findings import diagnose
from klent.measure.law import forecast, law_metrics
from klent.report.facts import law
from klent.report.fit import fit_run, reward_entropy
from klent.report.page import fit_facts
from klent.report.read import RunData


def run_of(entropies: list[float], rewards: list[float | None]) -> RunData:
    pairs = enumerate(zip(entropies, rewards, strict=True), start=1)
    return RunData(
        Path("r"), rows=[{"step": s, "policy/entropy": h, "reward/mean": r} for s, (h, r) in pairs]
    )


def lawful(noise: float, n: int = 20) -> RunData:
    rng = random.Random(1)
    entropies = [2.0 - 1.8 * i / (n - 1) for i in range(n)]
    return run_of(entropies, [0.9 - 0.1 * math.exp(h) + rng.gauss(0, noise) for h in entropies])


def test_exact_data_give_the_law_back() -> None:
    fit = fit_run(lawful(0.0))
    assert (fit.a, fit.b, fit.ceiling) == pytest.approx((0.1, 0.9, 0.8))
    assert fit.r2 == pytest.approx(1.0)
    assert fit.at(1.0)[0] == pytest.approx(0.9 - 0.1 * math.e)
    assert not fit.poor


def test_errors_are_those_of_numpy() -> None:
    run = lawful(0.05)
    x = -np.exp(run.series("policy/entropy")[1])
    y = np.array(run.series("reward/mean")[1])
    (a, b), scaled = np.polyfit(x, y, 1, cov="unscaled")
    covariance = scaled * ((y - a * x - b) ** 2).sum() / (len(x) - 2)
    fit = fit_run(run)
    assert (fit.a, fit.b) == pytest.approx((a, b))
    assert fit.slope_error == pytest.approx(math.sqrt(covariance[0, 0]))
    for h in (0.0, 0.7, 2.0):
        direction = np.array([-math.exp(h), 1.0])
        assert fit.at(h)[1] == pytest.approx(math.sqrt(direction @ covariance @ direction))
    assert fit.error == pytest.approx(fit.at(0.0)[1])
    assert fit.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_a_good_fit_says_its_ceiling_and_what_is_left() -> None:
    # exp(H) = 1, 2, 3, 4 and R = 0.9 - 0.1 exp(H) but for 0.01, which no line takes up
    entropies = [math.log(x) for x in (1.0, 2.0, 3.0, 4.0)]
    run = run_of(entropies[::-1], [0.51, 0.59, 0.69, 0.81])
    fit = fit_run(run)
    # variance 4 * 0.01^2 / 2 = 2e-4; error at exp(H) = 1: sqrt(2e-4 * (1/4 + 1.5^2 / 5)) = 0.011832;
    # t of two degrees of freedom at 95%: 4.3027; 4.3027 * 0.011832 = 0.0509
    assert (fit.a, fit.b, fit.error) == pytest.approx((0.1, 0.9, 0.011832), abs=1e-5)
    found = law(run, fit)
    assert found.text == (
        "The fit of reward against entropy (R² = 0.99, 4 steps) predicts a ceiling of 0.80 ± 0.051 at zero "
        "entropy, which the last reward, 0.81, has reached."
    )
    run.rows[-1]["reward/mean"] = 0.75
    assert law(run, fit).text.endswith("; the last reward, 0.75, is 0.050 below it.")
    assert not found.caution


def test_reward_beyond_the_ceiling_refutes_the_law() -> None:
    run = lawful(0.01)
    run.rows[-1]["reward/mean"] = run.rows[-2]["reward/mean"] = 1.0
    found = law(run, fit_run(run))
    assert found.text.endswith("is already above it, so do not trust this ceiling.")
    assert found.caution


def shown_ceilings(run: RunData) -> list[str]:
    """Wherever a page shows the ceiling as a number that may be read off."""
    fit, ahead = fit_run(run), forecast(run.rows)
    assert fit is not None
    found = [value for name, value in fit_facts(run, fit) if name.startswith("ceiling")]
    found += re.findall(r">(ceiling [^<]*)</text>", reward_entropy(run, fit).svg)
    said = [*(finding.evidence for finding in diagnose(Table(run.rows))), ahead.sentence() if ahead else ""]
    return [*found, *(text for text in said if "predicted ceiling" in text)]


@pytest.mark.parametrize("extra", [{"thermostat/value": 0.1}, {"mixture/alpha": 0.5}])
def test_where_reward_and_entropy_do_not_trade_freely_there_is_no_ceiling(extra: dict[str, float]) -> None:
    run = lawful(0.01)
    run = RunData(Path("r"), rows=[row | extra for row in run.rows])
    assert law(run, fit_run(run)).text.startswith("R = −a exp(H) + b predicts no ceiling for this run: ")
    assert forecast(run.rows).ceiling is None
    assert [text for text in shown_ceilings(run) if text[-1] != "–"] == []


def test_a_ceiling_wider_than_what_the_reward_moved_is_none() -> None:
    run = run_of([2.0, 1.95, 1.9, 1.85, 1.8, 1.75], [0.30, 0.31, 0.36, 0.35, 0.39, 0.40])
    fit = fit_run(run)
    assert not fit.poor
    assert fit.margin > fit.moved
    assert "exceeds what the reward moved, 0.10" in law(run, fit).text
    assert shown_ceilings(run) == ["–"]


def test_a_ceiling_that_the_reward_has_passed_is_shown_nowhere_as_a_number() -> None:
    """Entropy collapses, which puts the forecast in the top card, and the reward ends above the ceiling."""
    believed, run = lawful(0.01), lawful(0.01)
    run.rows[-1]["reward/mean"] = run.rows[-2]["reward/mean"] = 1.0
    assert [finding.name for finding in diagnose(Table(run.rows))] == ["entropy_collapse"]
    assert forecast(run.rows).ceiling is None
    assert "law/ceiling" not in law_metrics(run.rows)
    assert shown_ceilings(run) == ["–"]
    fit = fit_run(believed)
    assert law(believed, fit).text.endswith("below it.")
    assert len(shown_ceilings(believed)) == 4  # the table, the drawing, the top card, the forecast


def test_noise_is_called_poor() -> None:
    rng = random.Random(0)
    entropies = [rng.uniform(0.2, 2.0) for _ in range(20)]
    run = run_of(entropies, [rng.random() for _ in range(20)])
    text = law(run, fit_run(run)).text
    assert "poor" in text or "did not rise" in text
    assert "predicts a ceiling" not in text
    assert "no ceiling" in text


def test_reward_that_falls_with_entropy_has_no_ceiling() -> None:
    entropies = [2.0 - 0.1 * i for i in range(10)]
    run = run_of(entropies, [0.1 * math.exp(h) for h in entropies])
    fit = fit_run(run)
    assert fit.poor
    assert law(run, fit).text.startswith(
        "R = −a exp(H) + b predicts no ceiling for this run: reward did not rise as entropy fell"
    )


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (run_of([2.0, 1.0, 0.5], [0.1, 0.2, 0.3]), "fewer than four steps have both"),
        (run_of([2.0, 1.0, 0.5, 0.4, 0.3], [0.1, None, None, 0.3, 0.2]), "fewer than four steps have both"),
        (run_of([1.0] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), "entropy did not move"),
    ],
)
def test_no_fit_says_why(run: RunData, reason: str) -> None:
    assert fit_run(run) is None
    assert law(run, None).text == f"No fit of reward against entropy: {reason}."


def test_constant_reward_explains_nothing() -> None:
    fit = fit_run(run_of([2.0, 1.5, 1.0, 0.5], [0.5] * 4))
    assert fit.r2 == 0.0
    assert fit.poor

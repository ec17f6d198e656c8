"""Statements from vectors alone."""

import math

import pytest
import torch

from klent.audit.fit import EXACT, cosines, distances, fit


def vectors(count: int, size: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"c{n}": torch.randn(size, dtype=torch.float64, generator=generator) for n in range(count)}


def test_zero_is_measured_against_a_sample() -> None:
    known = vectors(3)
    tiny = 1e-12 * known["c0"]
    assert fit(tiny, 1.0, known).follows == "zero"
    assert fit(tiny, 1e-12, known).coefficients == pytest.approx({"c0": 1e-12})
    assert fit(torch.zeros(24, dtype=torch.float64), 0.0, known).relative_error == 0


def test_one_before_several() -> None:
    known = vectors(3)
    known["c3"] = known["c0"] + known["c1"]
    assert fit(2 * known["c3"], 1.0, known).coefficients == pytest.approx({"c3": 2})
    assert set(fit(known["c3"] - known["c2"], 1.0, known).coefficients) == {"c2", "c3"}


def test_several_up_to_four() -> None:
    known = vectors(12)
    names = ["c1", "c4", "c7", "c10"]
    mixed = sum((n + 1) * known[name] for n, name in enumerate(names))
    assert isinstance(mixed, torch.Tensor)
    found = fit(mixed, 1.0, known)
    assert found.follows == "combination"
    assert found.coefficients == pytest.approx(dict(zip(names, (1, 2, 3, 4), strict=True)))
    assert fit(mixed + known["c0"], 1.0, known).follows == "unknown"


def test_more_candidates_than_equations_explain_nothing() -> None:
    known = vectors(18, size=16)
    other = vectors(1, size=16, seed=9)["c0"]
    found = fit(other, 1.0, known)
    assert found.follows == "unknown"
    best = max(abs(c) for c in cosines(other, known).values())
    assert found.relative_error == pytest.approx(math.sqrt(1 - best**2))


def test_the_tolerance_is_where_it_is_said_to_be() -> None:
    known = vectors(1)
    off = vectors(1, seed=3)["c0"]
    off -= (off @ known["c0"]) / (known["c0"] @ known["c0"]) * known["c0"]
    off *= known["c0"].norm() / off.norm()
    for share, follows in ((0.9, "c0"), (1.1, "unknown")):
        assert fit(known["c0"] + share * EXACT * off, 1.0, known).follows == follows


def test_no_candidates_at_all() -> None:
    assert fit(torch.ones(4, dtype=torch.float64), 1.0, {}).follows == "unknown"
    assert math.isnan(cosines(torch.zeros(24, dtype=torch.float64), vectors(1))["c0"])


def test_at_most_one_rare_candidate() -> None:
    known = vectors(5)
    rare = ("c2", "c3")
    one = known["c0"] + 2 * known["c2"]
    assert fit(one, 1.0, known, rare=rare).coefficients == pytest.approx({"c0": 1, "c2": 2})
    assert fit(known["c2"], 1.0, known, rare=rare).follows == "c2"
    two = fit(known["c2"] + 0.1 * known["c3"], 1.0, known, rare=rare)
    assert two.follows == "unknown"
    best = max(
        abs(c) for name, c in cosines(known["c2"] + 0.1 * known["c3"], known).items() if name not in rare
    )
    assert two.relative_error == pytest.approx(math.sqrt(1 - best**2))


def test_usual_candidates_are_preferred_to_a_rare_one() -> None:
    known = vectors(3)
    known["sum"] = known["c0"] + known["c1"]
    found = fit(known["sum"] + known["c2"], 1.0, known, rare=("sum",))
    assert found.coefficients == pytest.approx({"c0": 1, "c1": 1, "c2": 1})
    assert fit(known["sum"], 1.0, known, rare=("sum",)).follows == "sum"


def test_distances() -> None:
    known = vectors(2)
    found = distances(2 * known["c0"], known | {"none": torch.zeros_like(known["c0"])})
    assert found["c0"] == pytest.approx(1)
    assert found["c1"] == pytest.approx(((2 * known["c0"] - known["c1"]).norm() / known["c1"].norm()).item())
    assert math.isnan(found["none"])

"""Whole runs end where they ended before: bit for bit on the recording machine, closely elsewhere."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from goldens.cases import CASES, make_world
from goldens.record import GOLDENS, fingerprint, run_case
from klent.head import products
from klent.kit.statistics import mean, pass_at_k, wilson

SAVED = json.loads(GOLDENS.read_text())
DIGESTS = ("weights", "samples", "forks")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many as the recording had: the order in which threads add up decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(SAVED["grpo"]["machine"]["threads"]))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", CASES)
def test_tiny_run_is_as_recorded(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path)
    compare(run_case(name, tmp_path), SAVED[name])


@pytest.mark.real
def test_smollm2_run_is_as_recorded(tmp_path: Path, monkeypatch) -> None:
    from klent.models.pull import pulled

    if pulled("smollm2-135m") is None:
        pytest.skip("needs `klent models pull smollm2-135m`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(products, "_MKLS", range(0))  # as it was recorded: MKL rounds otherwise
    compare(run_case("smollm2", tmp_path), SAVED["smollm2"])


def compare(run: dict[str, Any], saved: dict[str, Any]) -> None:
    """Every bit where the machine and its libraries are those of the recording; else numbers, to rounding.

    Elsewhere a choice between near equals (a token selected or sampled) may fall the other way: from there on the
    runs are two, and what came before is compared. A gradient that differs without such a choice is a fault.
    """
    if fingerprint() == saved["machine"]:
        assert without_nan(known(run["metrics"], saved["metrics"])) == without_nan(saved["metrics"])
        evaluations = [as_recorded(row) for row in run["evaluations"]]
        assert without_nan(evaluations) == without_nan(saved["evaluations"])
        assert {key: run[key] for key in DIGESTS} == {key: saved[key] for key in DIGESTS}
        return
    for row, expected in zip(run["metrics"], saved["metrics"], strict=True):
        for key in ("reward/mean", "policy/entropy", "completion/length"):
            if key in expected:
                assert math.isclose(row[key], expected[key], rel_tol=1e-3), (row["step"], key)
        if "grad/norm" in expected and not math.isclose(
            row["grad/norm"], expected["grad/norm"], rel_tol=1e-3
        ):
            assert chose_otherwise(row, expected), (row["step"], "grad/norm")
            return


#: numbers that a token moves, selected or sampled in another's place, and rounding does not
OF_CHOICES = ("policy/entropy", "selected/entropy", "selected/covariance")


def chose_otherwise(row: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether a step selected or sampled other tokens than the recorded one."""
    return any(not math.isclose(row[k], expected[k], rel_tol=1e-4) for k in OF_CHOICES if k in expected)


def test_a_gradient_that_differs_by_itself_is_a_fault() -> None:
    saved = SAVED["kl_cov"] | {"machine": {}}
    first = saved["metrics"][0]
    wrong = first | {"grad/norm": 1.002 * first["grad/norm"]}
    with pytest.raises(AssertionError, match="grad/norm"):
        compare({"metrics": [wrong, *saved["metrics"][1:]]}, saved)
    other = wrong | {"selected/entropy": 1.001 * first["selected/entropy"]}
    compare({"metrics": [other, *saved["metrics"][1:]]}, saved)


def known(rows: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that were there when the run was recorded; later ones say more of the same run."""
    return [{key: row[key] for key in then} for row, then in zip(rows, recorded, strict=True)]


def as_recorded(row: dict[str, Any]) -> dict[str, Any]:
    """An evaluation with the keys of the recording, each computed from its rewards as the recording had it.

    The recordings count rewards of at least 1 as accuracy also where rewards are graded, at the recipe's
    temperature and at others, and have no intervals of the mean reward. None of the graded rewards is 1. The loss
    of held-out completions is not part of them.
    """
    rewards = row["rewards"]
    assert all(value is not None for problem in rewards for value in problem)
    correct = [[float(value >= 1.0 - 1e-6) for value in problem] for problem in rewards]
    accuracy = sum(map(sum, correct)) / sum(map(len, correct))
    low, high = wilson(accuracy, len(correct))
    passes = {f"pass@{k}": mean(pass_at_k(correct, k)) for k in range(1, row["samples"] + 1)}
    recorded = {"accuracy": accuracy, "low": low, "high": high, **passes, "correct": correct}
    assert row.get("accuracy", accuracy) == accuracy
    for key in [key for key in row if key.startswith("reward@")]:
        at = key.removeprefix("reward")
        assert row[key] < 1.0
        recorded[f"accuracy{at}"] = row.get(f"accuracy{at}", 0.0)
    if "agreement" in row:
        recorded["majority"] = row.get("majority", 0.0)
    added = {"temperature", "rewards", "reward_low", "reward_high"}
    kept = {key: value for key, value in row.items() if key not in added}
    kept = {key: value for key, value in kept.items() if "@" not in key or key.startswith("accuracy@")}
    kept = {key: value for key, value in kept.items() if not key.startswith(("loss", "perplexity"))}
    return kept | recorded


def without_nan(value: Any) -> Any:
    """NaN is not equal to itself; here it stands for itself."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value

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
    compare(run_case("smollm2", tmp_path), SAVED["smollm2"])


def compare(run: dict[str, Any], saved: dict[str, Any]) -> None:
    """Every bit where the machine and its libraries are those of the recording; else numbers, to rounding."""
    if fingerprint() == saved["machine"]:
        assert without_nan(known(run["metrics"], saved["metrics"])) == without_nan(saved["metrics"])
        assert without_nan(run["evaluations"]) == without_nan(saved["evaluations"])
        assert {key: run[key] for key in DIGESTS} == {key: saved[key] for key in DIGESTS}
        return
    for row, expected in zip(run["metrics"], saved["metrics"], strict=True):
        for key in ("reward/mean", "policy/entropy", "grad/norm", "completion/length"):
            if key in expected:
                assert math.isclose(row[key], expected[key], rel_tol=1e-3), (row["step"], key)


def known(rows: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The metrics that were there when the run was recorded; later ones say more of the same run."""
    return [{key: row[key] for key in then} for row, then in zip(rows, recorded, strict=True)]


def without_nan(value: Any) -> Any:
    """NaN is not equal to itself; here it stands for itself."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value

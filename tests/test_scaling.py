"""benchmarks/scaling.py: the cost model by hand, its simulation at the edges, and the committed tables and pages."""

import csv
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def model():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("benchmarks_scaling", FOLDER / "scaling.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def committed(name):
    with open(FOLDER / "results" / name, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_one_device_by_hand(model):
    assert model.sampling(128) == pytest.approx(128 * 4.05e-3)
    assert model.sampling(512) == pytest.approx(128 * 6.9e-3)
    assert model.training(256) == pytest.approx(0.7)
    assert model.exchange(1, 512) == 0.0
    assert model.exchange(2, 100) == pytest.approx(4 * 0.494e9 / 100e9 + 0.5 * 100 * 128 * 40 / 1e9)


def test_without_spread_one_side_waits_or_both_work(model, monkeypatch):
    monkeypatch.setitem(model.ASSUMED, "spread", 0.0)
    rows = 1024
    sampling, hand_over = model.sampling(rows / 3), 2 * 0.494e9 / 100e9
    training = model.training(rows / 5) + model.exchange(5, rows)
    assert model.apart(3, 8, rows, 0) == pytest.approx(sampling + hand_over + training, rel=1e-9)
    slower = max(sampling, training)
    for staleness in (1, 2):
        assert slower < model.apart(3, 8, rows, staleness) < 1.02 * (slower + hand_over)
    assert sampling + training > 1.5 * slower  # so that the two differ


def test_the_committed_tables_are_those_of_the_model(model):
    for name, rows in (("scaling.csv", model.scaling()), ("apart.csv", model.eight())):
        assert committed(name) == [{key: str(value) for key, value in row.items()} for row in rows]


def test_the_pages_say_what_the_tables_say():
    ranks, engines = ((ROOT / "docs" / name).read_text() for name in ("ranks.md", "engines.md"))
    for row in committed("scaling.csv"):
        assert f"{int(row['tokens_per_second_per_device']):,}" in ranks
    split = {(row["how"], row["staleness"]): float(row["to_turns"]) for row in committed("apart.csv")}
    lines = re.findall(r"^\| (\d sample, \d train) \| (\S+) \| (\S+) \| (\S+) \|$", engines, flags=re.M)
    assert {how for how, *_ in lines} == {how for how, _ in split} - {"in turns"}
    for how, *shown in lines:
        for staleness, value in enumerate(shown):
            assert float(value) == pytest.approx(split[how, str(staleness)], abs=0.0051)

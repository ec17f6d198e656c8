"""benchmarks/environment_rollout.py: what it counts, by hand and against the engine's own counter."""

import argparse
import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder

from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

FILE = Path(__file__).parents[1] / "benchmarks" / "environment_rollout.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("environment_rollout", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def episode(opening, acted, turn, prefill):
    given = {"acted": torch.tensor(acted, dtype=torch.bool), "turn": torch.tensor(turn), "prefill": prefill}
    return Episode(Prompt("a", "b"), list(range(opening)), torch.arange(len(acted)), "", "stop", **given)


def test_what_is_read_once_and_again_by_hand(benchmark):
    """Two of a group: an opening of 5, turns of 2 and 1 tokens with 3 said between them; and one turn of 4."""
    long = episode(5, [1, 1, 0, 0, 0, 1], [0, 0, 1, 1, 1, 1], 5 + 3 + 1)
    short = episode(5, [1, 1, 1, 1], [0] * 4, 0)
    found = benchmark.counted([long, short], group=2)
    assert found == {
        "episodes": 2,
        "turns": 3,
        "sampled": 3 + 4,
        "read": 9,
        "once": 5 + (3 + 1),  # the opening of the group; what was said, and the first turn's last token
        "again": (5 + (5 + 2 + 3)) + 5,
    }


def test_no_token_is_read_twice_and_without_what_is_kept_each_turn_reads_all(benchmark, tmp_path):
    model = str(tiny_folder(tmp_path / "model"))
    options = argparse.Namespace(model=model, starts=2, group=2, turns=3, turn_tokens=4)
    (seconds, cpu), kept = benchmark.klent_rollout(options, "maze", keeps=True)(0)
    assert seconds > 0
    assert cpu > 0
    assert kept["read"] == kept["once"] < kept["again"]
    assert (kept["episodes"], kept["turns"], kept["sampled"]) == (4, 12, 48)
    _, reread = benchmark.klent_rollout(options, "maze", keeps=False)(0)
    assert reread["sampled"] == kept["sampled"]
    assert reread["once"] < reread["read"] < reread["again"]
    assert kept["fed"] < reread["fed"]


def test_ratios_are_of_one_repetition(benchmark):
    rows = [
        {"game": "maze", "contender": name, "repetition": number, "cpu": seconds}
        for name, number, seconds in [
            ("klent", 1, 2),
            ("trl", 1, 6),
            ("klent", 2, 5),
            ("trl", 2, 5),
            ("trl", 3, 1),
        ]
    ]
    assert benchmark.ratios(rows, "maze", "trl") == [3.0, 1.0]
    assert benchmark.ratios(rows, "guess_who", "trl") == []

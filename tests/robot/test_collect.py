"""Collections: the same bits whoever records them and however often they are stopped; and what is read of them."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from klent.cli import app
from klent.config.collection import CollectionSettings, read_collection
from klent.errors import ConfigError, DataError, RunError
from klent.tasks.collect import collect
from klent.tasks.segments import Comparisons, read_segments

SETTINGS = CollectionSettings(
    task="reach",
    segments=11,
    length=8,
    branches=2,
    continuations=2,
    shard=3,
    behaviours=(0.1, 1.0, "random"),
    seed=5,
)


def record(folder: Path, *, workers: int = 1, settings: CollectionSettings = SETTINGS) -> int:
    return collect(folder, settings, workers=workers, progress=lambda done, of: None)


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("collection") / "reach"
    assert record(folder) == 11
    return folder


def test_neither_workers_nor_a_kill_change_a_bit(recorded, tmp_path):
    record(tmp_path / "two", workers=2)
    assert content(tmp_path / "two") == content(recorded)
    for name in (
        "shards/00001.jsonl",
        "shards/00003.jsonl",
        "shards/00003.safetensors",
    ):  # killed between the files
        (tmp_path / "two" / name).unlink()
    with pytest.raises(DataError, match="not complete: 3 of 11 segments are recorded"):
        read_segments(tmp_path / "two")
    assert record(tmp_path / "two") == 5
    assert content(tmp_path / "two") == content(recorded)
    assert record(tmp_path / "two") == 0


def test_another_collection_is_not_mixed_in(recorded):
    with pytest.raises(RunError, match="length: 8 there, 9 asked for"):
        record(recorded, settings=SETTINGS.model_copy(update={"length": 9}))


def test_what_a_worker_cannot_do_is_told(tmp_path):
    with pytest.raises(RunError, match=r"segments 0 to 2: .*length: a segment of 41 steps is longer"):
        record(tmp_path / "long", settings=CollectionSettings(task="reach", length=41, segments=3))


def test_a_collection_is_read_as_it_was_recorded(recorded):
    segments = read_segments(recorded)
    assert list(segments.numbers) == list(range(11))
    assert segments.observation.shape == (11, 8, 4)
    assert segments.branch_mean.shape == (11, 2, 2, 8, 2)
    lines = [
        json.loads(line)
        for file in sorted(recorded.rglob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    assert segments.worth["regret"].tolist() == pytest.approx([-line["regret"] for line in lines])
    assert segments.worth["success"].tolist() == [float(line["success"]) for line in lines]
    assert {line["behaviour"] for line in lines} == {0.1, 1.0, "random"}
    assert len({line["start"] for line in lines}) > 3
    noise = (segments.action - segments.mean) / segments.std[:, None, None]
    assert abs(noise.std().item() - 1) < 0.2


def test_a_damaged_shard_is_named(recorded, tmp_path):
    record(tmp_path / "bad")
    (tmp_path / "bad/shards/00002.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"00002.safetensors cannot be read"):
        read_segments(tmp_path / "bad")
    with pytest.raises(DataError, match="holds no collection"):
        read_segments(tmp_path / "none")


def test_comparisons_prefer_what_is_worth_more():
    worth = torch.tensor([0.0, 3.0, 1.0, 3.0, -2.0])
    dense = Comparisons(worth, count=None, seed=1)
    pairs = [dense.pair(position) for position in range(400)]
    assert all(worth[better] > worth[worse] for better, worse in pairs)
    assert {tuple(sorted(pair)) for pair in pairs} == {
        (a, b) for a in range(5) for b in range(a + 1, 5) if (a, b) != (1, 3)
    }
    assert pairs == [Comparisons(worth, count=None, seed=1).pair(position) for position in range(400)]
    sparse = Comparisons(worth, count=3, seed=1)
    assert [sparse.pair(position) for position in range(9)] == 3 * pairs[:3]
    assert [Comparisons(worth, count=3, seed=2).pair(p) for p in range(3)] != pairs[:3]


def test_nothing_to_prefer_is_refused():
    with pytest.raises(DataError, match="all segments have the same label"):
        Comparisons(torch.ones(4), count=None, seed=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["segments=3"], "task is missing"),
        (["task=reach", "segment=3"], "segment: there is no such setting; did you mean `segments`?"),
        (["task=reach", "length=0"], "length: should be greater than or equal to 1"),
        (["task=reach", "behaviours=[0]"], "behaviours: with noise 0 an action has no density"),
        (["task=reach", "branches=7"], "branches (7) must divide length (64) evenly"),
    ],
)
def test_settings_are_refused_with_the_key(overrides, message):
    with pytest.raises(ConfigError) as caught:
        read_collection(overrides)
    assert message in str(caught.value)


def test_the_command_records_and_says_so(recorded, tmp_path):
    folder = tmp_path / "reach"
    given = ["task=reach", "segments=11", "length=8", "branches=2", "continuations=2", "shard=3", "seed=5"]
    result = CliRunner().invoke(app, ["collect", str(folder), *given, "behaviours=[0.1,1.0,random]"])
    assert result.exit_code == 0, result.output
    assert "11 segments of reach, 11 recorded now" in " ".join(result.output.split())
    assert content(folder) == content(recorded)

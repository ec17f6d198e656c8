"""Pairs from a known reward: right by it, noisy as asked, and continued where a call was interrupted."""

import json
import math
import random
from pathlib import Path

import pytest
from tiny import tiny_folder

from klent.config import make_recipe
from klent.errors import ConfigError, RunError
from klent.models.load import load_model
from klent.rollout.dataset_engine import DatasetEngine
from klent.streams.prompt import Prompt
from klent.studies.label import Labels, label_pairs
from klent.tasks import Scorer


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "tiny")
    rows = [{"prompt": f"{i} + 1 = ", "answer": str(i + 1)} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.py").write_text(
        "def size(completions, **k):\n    return [float(len(set(c))) for c in completions]\n"
    )
    values = {
        "model": "tiny",
        "method": "grpo",
        "task": {"data": "a.jsonl"},
        "reward": "r.py:size",
        "steps": 1,
        "rollout": {"max_tokens": 6},
        "eval": None,
    }
    return make_recipe(values)


def test_pairs_are_right_by_the_reward_and_can_be_continued(recipe, tmp_path, monkeypatch) -> None:
    whole = label_pairs(recipe, Labels(20), out=tmp_path / "whole.jsonl")
    assert len(whole) == 20
    assert all(row["score_chosen"] > row["score_rejected"] for row in whole)
    assert all(row["score_chosen"] == len(set(row["chosen"])) for row in whole)
    assert {"prompt", "chosen", "rejected", "answer"} <= whole[0].keys()
    calls = []

    def interrupted(self, episodes):
        calls.append(episodes)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(self, episodes)

    scored = Scorer.score_episodes
    monkeypatch.setattr(Scorer, "score_episodes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        label_pairs(recipe, Labels(20), out=tmp_path / "part.jsonl")
    monkeypatch.setattr(Scorer, "score_episodes", scored)
    assert not (tmp_path / "part.jsonl").exists()
    assert label_pairs(recipe, Labels(20), out=tmp_path / "part.jsonl") == whole
    assert not (tmp_path / "part.jsonl.part").exists()
    assert (tmp_path / "part.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_answers_that_were_cut_are_trained_as_they_were_sampled(recipe, tmp_path) -> None:
    """They have all the tokens that were allowed, so that an end behind them would be one too many, and untrue."""
    rows = label_pairs(recipe, Labels(20), out=tmp_path / "pairs.jsonl")
    marks = [row.get(f"finish_{side}") for row in rows for side in ("chosen", "rejected")]
    assert "length" in marks
    engine = DatasetEngine(load_model("tiny"), max_tokens=6, columns=("chosen", "rejected"))
    prompts = [Prompt(f"pairs:{i}", row["prompt"], row) for i, row in enumerate(rows)]
    episodes = engine.generate(prompts, group_size=2, seed=0)
    assert [episode.finish for episode in episodes] == [mark or "stop" for mark in marks]
    ends = {episode.finish: set() for episode in episodes}
    for episode in episodes:
        ends[episode.finish].add(int(episode.tokens[-1]) in engine.loaded.stop_ids)
    assert ends["length"] == {False}
    assert ends.get("stop", {True}) == {True}


def test_answers_with_one_text_make_no_pair_whatever_their_rewards(recipe, tmp_path) -> None:
    (tmp_path / "r.py").write_text(
        "def size(completions, **k):\n    return [float(i) for i in range(len(completions))]\n"
    )
    (tmp_path / "a.jsonl").write_text('{"prompt": "1 + 1 = "}\n' * 4)
    alike = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"max_tokens": 1})})
    rows = label_pairs(alike, Labels(12), out=tmp_path / "p.jsonl")
    assert all(row["chosen"].strip() != row["rejected"].strip() for row in rows)


def test_an_environment_makes_no_pairs(tmp_path) -> None:
    played = make_recipe(
        {"model": "tiny", "method": "grpo", "task": {"env": "maze"}, "steps": 1, "eval": None}
    )
    with pytest.raises(ConfigError, match=r"task.env has several turns"):
        label_pairs(played, Labels(1), out=tmp_path / "p.jsonl")


def test_a_small_noise_and_a_large_difference_are_no_error() -> None:
    """sigmoid(-1000 / 0.001) is 0: float64 does not hold exp(1e6)."""
    labels = Labels(1, noise=1e-3)
    assert labels.first_is_better(1000.0, 0.0, random.Random(0))
    assert not labels.first_is_better(0.0, 1000.0, random.Random(0))


def test_a_part_of_other_settings_is_refused(recipe, tmp_path) -> None:
    (tmp_path / "p.jsonl.part").write_text(json.dumps({"noise": 3}) + "\n")
    with pytest.raises(RunError, match="holds pairs of another setting"):
        label_pairs(recipe, Labels(2), out=tmp_path / "p.jsonl")


def test_labels_are_drawn_as_bradley_and_terry_say() -> None:
    drawn, labels = random.Random(0), Labels(1, noise=2.0, flip=0.1)
    right = sum(labels.first_is_better(3.0, 1.0, drawn) for _ in range(20_000)) / 20_000
    sure = 1 / (1 + math.exp(-1.0))
    assert abs(right - (0.9 * sure + 0.1 * (1 - sure))) < 0.01
    assert all(Labels(1).first_is_better(1.0, 0.5, drawn) for _ in range(50))


def test_answers_that_never_differ_end_the_search(recipe, tmp_path) -> None:
    (tmp_path / "r.py").write_text("def size(completions, **k):\n    return [1.0 for _ in completions]\n")
    with pytest.raises(RunError, match="0 of 1 pair after 24 prompts: two answers hardly ever"):
        label_pairs(recipe, Labels(1), out=tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"), [((0,), "at least one"), ((1, -1.0), "0 or more"), ((1, 0.0, 0.5), "0.5")]
)
def test_settings_out_of_range(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Labels(*settings)

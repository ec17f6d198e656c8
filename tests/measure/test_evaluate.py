"""Held-out accuracy and its interval."""

import math

import pytest
import torch

from klent.kit.statistics import wilson
from klent.measure.evaluate import evaluate, is_correct
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.scorer import Scores


class Engine:
    def generate(self, prompts, *, group_size, seed):
        nothing = torch.zeros(2)
        return [
            Episode(p, [1], torch.tensor([5, 6]), "x", "stop", logp=nothing, entropy=nothing + 0.5)
            for p in prompts
        ]


class ThreeSamples(Engine):
    def generate(self, prompts, *, group_size, seed):
        return [
            r
            for p in prompts
            for r in super(ThreeSamples, self).generate([p] * group_size, group_size=1, seed=0)
        ]


class Fixed:
    def score(self, prompts, completions, finish):
        return Scores([1.0, 0.0, 0.5, 0.0, math.nan, 0.0], {}, {})


def test_a_row_of_eval_jsonl():
    row = evaluate(ThreeSamples(), Fixed(), [Prompt("a", "a"), Prompt("b", "b")], samples=3, seed=0, step=7)
    assert row["correct"] == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert row["accuracy"] == pytest.approx(1 / 6)
    assert row["pass@3"] == 0.5
    assert row["reward"] == pytest.approx(1.5 / 5)
    assert row["unscorable"] == pytest.approx(1 / 6)
    assert (row["step"], row["problems"], row["samples"], row["entropy"], row["length"]) == (
        7,
        2,
        3,
        0.5,
        2.0,
    )
    assert (row["low"], row["high"]) == wilson(row["accuracy"], 2)


@pytest.mark.parametrize(("reward", "correct"), [(1.0, True), (1 - 1e-7, True), (0.999, False), (2.0, True)])
def test_a_reward_of_one_up_to_rounding_is_correct(reward, correct):
    assert is_correct(reward) is correct
    assert not is_correct(math.nan)

"""Held-out scores and their intervals: accuracy where rewards are 0 or 1, else the mean reward."""

import math

import pytest
import torch

from klent.kit.statistics import wilson
from klent.measure.completion_loss import completion_loss
from klent.measure.evaluate import evaluate
from klent.measure.score import is_correct, kind_of, measure, score_of, temperatures_of
from klent.report.terms.evaluation import EVALUATION
from klent.streams.batch import Stats
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.tasks.scorer import Scores


def test_the_loss_of_completions_is_a_mean_over_the_tokens_that_are_trained():
    episodes = [
        Episode(Prompt("p:1", "a"), [1], torch.tensor([5, 6, 7]), "x", "stop"),
        Episode(Prompt("p:2", [{"role": "user", "content": "b"}]), [1], torch.tensor([8]), "x", "stop"),
    ]
    episodes[0].acted = torch.tensor([True, False, True])
    logp = -torch.tensor([[1.0, 100.0, 4.0], [0.5, 100.0, 100.0]])
    row = completion_loss(episodes, lambda batch, rows, policy: Stats(logp, logp), str)
    assert row["loss"] == pytest.approx(5.5 / 3)
    assert row["perplexity"] == pytest.approx(math.exp(5.5 / 3))
    assert row["loss_low"] < row["loss"] < row["loss_high"]
    assert (row["loss_completions"], row["loss_tokens"]) == (2, 3)
    assert [text["loss"] for text in row["loss_texts"]] == [[1.0, None, 4.0], [0.5]]
    assert [(one["prompt_id"], one["position"], one["loss"]) for one in row["loss_worst"]] == [
        ("p:1", 2, 4.0),
        ("p:1", 0, 1.0),
        ("p:2", 0, 0.5),
    ]
    assert set(row) <= set(EVALUATION)


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
    def __init__(self, rewards=(1.0, 0.0, 0.0, 0.0, math.nan, 0.0)):
        self.rewards = list(rewards)

    def score_episodes(self, episodes):
        assert [episode.tokens.tolist() for episode in episodes] == [[5, 6]] * len(episodes)
        failed = sum(map(math.isnan, self.rewards))
        return Scores(self.rewards, {}, {"f raised ValueError": failed} if failed else {})


def evaluated(*rewards):
    prompts = [Prompt("a", "a"), Prompt("b", "b")]
    return evaluate(ThreeSamples(), Fixed(rewards), prompts, samples=3, seed=0, step=7)


def test_a_row_of_eval_jsonl():
    row = evaluate(ThreeSamples(), Fixed(), [Prompt("a", "a"), Prompt("b", "b")], samples=3, seed=0, step=7)
    assert row["correct"] == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert row["accuracy"] == pytest.approx(1 / 6)
    assert row["pass@3"] == 0.5
    assert row["reward"] == pytest.approx(1 / 5)
    assert (row["reward_low"], row["reward_high"]) == wilson(row["reward"], 2)
    assert row["rewards"] == [[1.0, 0.0, 0.0], [0.0, None, 0.0]]
    assert row["unscorable_why"] == {"f raised ValueError": 1}
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


def test_graded_rewards_have_a_mean_and_no_accuracy():
    row = evaluated(0.5, 0.7, 0.9, 0.1, 0.3, math.nan)
    assert row["reward"] == pytest.approx(0.5)
    # problem means 0.7 and 0.2: standard error 0.25, t(1) = 12.706
    assert row["reward_high"] - row["reward"] == pytest.approx(12.706 * 0.25, rel=1e-4)
    assert row["reward_high"] - row["reward"] == pytest.approx(row["reward"] - row["reward_low"])
    assert not {"accuracy", "low", "high", "pass@1", "correct"} & set(row)
    assert kind_of([row]) == "reward"
    assert str(score_of(row, "reward")).startswith("0.500 (95% interval -2.677 to 3.677)")


def test_graded_rewards_that_do_not_differ_have_no_interval():
    row = evaluated(*[0.5] * 6)
    assert (row["reward"], "reward_low" in row) == (0.5, False)
    assert str(score_of(row, "reward")) == "0.500"


def test_what_could_not_be_scored_has_no_number():
    row = evaluated(*[math.nan] * 6)
    assert row["reward"] is None
    assert not {"accuracy", "low", "high", "reward_low", "pass@1", "correct"} & set(row)
    assert (row["unscorable"], row["unscorable_why"]) == (1.0, {"f raised ValueError": 6})
    assert score_of(row, kind_of([row])) is None


@pytest.mark.parametrize("rewards", [(2.0, 0.0), (-1.0, 1.0), (0.999, 0.0), (0.01, 1.0)])
def test_accuracy_is_of_zeros_and_ones_alone(rewards):
    assert "accuracy" not in measure([rewards])


def test_zeros_of_a_graded_reward_are_read_with_the_other_evaluations():
    rows = [evaluated(*[0.0] * 6), evaluated(0.5, 0.7, 0.9, 0.1, 0.3, 0.2)]
    assert "accuracy" in rows[0]
    assert kind_of(rows) == "reward"
    assert [score_of(row, "reward").value for row in rows] == [0.0, pytest.approx(0.45)]


def test_other_temperatures_are_named():
    row = {"temperature": 0.7, "reward": 0.1, "reward@0": 0.4, "reward_low@0": 0.3, "reward@0.5": 0.2}
    assert temperatures_of(row) == {"": "at temperature 0.7", "@0": "greedily", "@0.5": "at temperature 0.5"}
    assert score_of(row, "reward", "@0") == (0.4, 0.3, None)


@pytest.mark.parametrize("rewards", [(1.0, 0.0, math.nan), (0.5, 0.2, 0.1)])
def test_every_key_of_a_row_is_described(rewards):
    described = {name.replace("<k>", str(k)) for name in EVALUATION for k in (1, 2, 3)} | {"split"}
    assert set(evaluated(*rewards, *rewards)) <= described

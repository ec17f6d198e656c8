"""Rewards without an answer: agreement within a group, and chance."""

import math
from collections.abc import Iterator

import pytest

from klent.errors import ConfigError, DataError
from klent.tasks import Prompt, Scorer, parse_rewards
from klent.tasks.agreement import empo, random


def test_groups_are_prompts_wherever_their_completions_stand():
    assert empo(["a", "b", "a", "b"], ["1", "1", "1", "2"]) == [1.0, 0.5, 1.0, 0.5]


def test_messages_and_their_question():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what is 4 + 5 ?"}]
    texts = ["9", "9", "what is 4 + 5 ?", "be brief."]
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    assert empo([prompt] * 4, replies) == [0.5, 0.5, 0.0, 0.25]


def test_thresholds_silence_the_sure_and_the_scattered():
    prompts = ["sure"] * 4 + ["half"] * 4 + ["scattered"] * 4
    texts = [*"1111", *"1112", *"1234"]
    assert empo(prompts, texts, low=0.1, high=1.0) == [0.0] * 4 + [0.75] * 3 + [0.25] + [0.0] * 4


def test_one_completion_says_nothing():
    assert empo(["a", "b", "b"], ["1", "1", "2"]) == [None, 0.5, 0.5]


def test_what_is_logged():
    found: dict[str, float] = {}
    prompts = ["a"] * 4 + ["say 1 2 3 4"] * 4
    texts = [*"1111", "1", "2", "", "say 1 2 3 4"]
    empo(prompts, texts, log_metric=found.__setitem__)
    assert found == {
        "semantic/entropy": pytest.approx(math.log(4) / 2, abs=1e-6),
        "semantic/entropy_p10": 0.0,
        "semantic/entropy_p90": pytest.approx(math.log(4), abs=1e-6),
        "semantic/clusters": 2.5,
        "semantic/majority": (1 + 0.25) / 2,
        "semantic/used": 1.0,
        "semantic/empty": 0.25,
        "semantic/copied": 0.125,
    }


def test_chance_looks_at_the_place_and_not_at_the_text():
    prompts = ["a"] * 500 + ["b"] * 500
    rewards = random(prompts, ["x"] * 1000)
    assert rewards == random(prompts, [str(n) for n in range(1000)])
    assert sum(rewards) == pytest.approx(500, abs=60)
    assert rewards[:500] != rewards[500:]
    assert rewards != random(prompts, ["x"] * 1000, seed=1)
    assert sum(random(prompts, ["x"] * 1000, p=0.1)) == pytest.approx(100, abs=40)
    with pytest.raises(ValueError, match="p must be a probability"):
        random(["a"], ["x"], p=2)


class Task:
    name = "t"

    def train(self, position: int) -> Prompt:
        return Prompt("t/0", "4 + 5?", {"answer": "9"})

    def heldout(self, count: int) -> list[Prompt]:
        return []


def scorer(value: object) -> Scorer:
    return Scorer(parse_rewards(value), Task())


@pytest.fixture(scope="module")
def voting() -> Iterator[Scorer]:
    """One process for all: it takes seconds to import torch."""
    with scorer({"empo": {"same": "number"}, "last_number": 0}) as rewards:
        rewards.check()
        yield rewards


def test_in_a_worker_with_settings_metrics_and_the_true_reward_beside(voting):
    scores = voting.score([Task().train(0)] * 4, ["8", "8.", "it is 8", "9"])
    assert scores.reward == [0.75, 0.75, 0.75, 0.25]
    assert scores.parts["last_number"] == [0.0, 0.0, 0.0, 1.0]
    assert scores.problems == {}
    assert scores.metrics["semantic/majority"] == 0.75


def test_what_the_budget_cut_has_no_answer(voting):
    texts, ends = ["8", "8", "To solve 4 + 5", "To add 4 + 5"], ["stop", "length", "length", "length"]
    prompts = [Task().train(0)] * 4
    cut = voting.score(prompts, texts, ends)
    assert voting.score(prompts, texts).reward == [0.5, 0.5, 0.5, 0.5]  # nothing is known to be cut
    assert cut.reward == [0.25, 0.0, 0.0, 0.0]
    assert cut.metrics["semantic/empty"] == 0.75
    asked = [prompt.prompt for prompt in prompts]
    assert empo(asked, texts, same="number", truncated=True, finish=ends) == [0.5, 0.5, 0.5, 0.5]
    assert empo(asked, texts, same="number", finish=ends) == [0.25, 0.0, 0.0, 0.0]


def test_a_users_reward_may_ask_how_completions_ended(tmp_path):
    (tmp_path / "ends.py").write_text(
        "def f(completions, finish):\n    return [e == 'stop' for e in finish]\n"
    )
    with scorer(f"{tmp_path}/ends.py:f") as rewards:
        rewards.check()
        scores = rewards.score([Task().train(0)] * 2, ["a", "b"], ["stop", "length"])
    assert scores.reward == [1.0, 0.0]


def test_a_setting_that_is_not_there_or_out_of_range(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def f(completions, *, same='text'):\n    return [1.0] * len(completions)\n"
    )
    refused = pytest.raises(
        ConfigError, match=r"mine\.py:f: no argument 'sane'; did you mean `same`\?; it takes same"
    )
    with scorer({f"{tmp_path}/mine.py:f": {"sane": "text"}}) as rewards, refused:
        rewards.check()
    with scorer({"empo": {"low": -1.0}}) as rewards, pytest.raises(DataError, match=r"reward empo: .*low"):
        rewards.check()


def test_a_users_reward_logs_and_takes_settings(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def f(completions, *, scale, log_metric, **columns):\n"
        "    log_metric('longest', max(map(len, completions)))\n"
        "    return [scale * len(c) for c in completions]\n"
    )
    with scorer({f"{tmp_path}/mine.py:f": {"scale": 2.0}}) as rewards:
        rewards.check()
        scores = rewards.score([Task().train(0)] * 2, ["a", "bcd"])
    assert scores.reward == [2.0, 6.0]
    assert scores.metrics == {"longest": 3.0}

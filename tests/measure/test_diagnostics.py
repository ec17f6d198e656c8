"""Diagnostics of a step, against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from helpers_training import batch, episodes

from klent.kit.statistics import pass_at_k
from klent.measure.diagnostics import (
    collision_metrics,
    covariance_tails,
    effect_metrics,
    fork_share,
    fork_words,
    repetition,
    selected_and_rest,
)
from klent.measure.metrics import rollout_metrics
from klent.objectives import entropy_effect
from klent.streams.batch import make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.streams.registry import Streams
from klent.tasks.scorer import Scores


def test_tails_are_means_over_the_largest_tokens_on_the_mask():
    covariance = torch.arange(1000.0).reshape(10, 100)
    mask = torch.ones(10, 100, dtype=torch.bool)
    mask[-1, -1] = False  # the largest is off the mask; 999 are left
    found = covariance_tails(covariance, mask)
    assert found["covariance/top_0.02"] == 998.0  # one token
    assert found["covariance/top_0.2"] == pytest.approx(997.5)  # two
    assert found["covariance/top_2"] == pytest.approx(998 - 19 / 2)  # twenty
    assert found["covariance/top_20"] == pytest.approx(998 - 199 / 2)  # two hundred
    assert covariance_tails(covariance, torch.zeros_like(mask)) == {}


def test_shares_of_the_forks():
    entropy = torch.tensor([[5.0, 1.0, 1.0, 1.0, 2.0], [4.0, 0.0, 0.0, 0.0, 99.0]])
    coefficient = torch.tensor([[-3.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 7.0]])
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 4] = False
    found = fork_share(entropy, coefficient, mask)  # nine tokens: the two of entropy 5 and 4
    assert found["forks/threshold"] == 4.0
    assert found["forks/entropy_share"] == pytest.approx(9 / 14)
    assert found["forks/token_share"] == pytest.approx(1 / 4)
    assert found["forks/gradient_share"] == pytest.approx(3 / 6)
    assert "forks/gradient_share" not in fork_share(entropy, 0 * coefficient, mask)


def test_selected_and_rest_are_parts_of_all():
    entropy, covariance = torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([[0.5, -0.5, 3.0]])
    mask, chosen = torch.tensor([[True, True, True]]), torch.tensor([[False, False, True]])
    found = selected_and_rest(entropy, covariance, chosen, mask)
    assert found == {
        "selected/fraction": pytest.approx(1 / 3),
        "selected/entropy": 6.0,
        "rest/entropy": 1.5,
        "selected/covariance": 3.0,
        "rest/covariance": 0.0,
    }
    assert "selected/entropy" not in selected_and_rest(entropy, None, ~mask, mask)


def test_collision_is_the_mean_probability_and_renyi_needs_the_sampler():
    rows = batch()
    for episode in rows.episodes:
        episode.renyi = None
    found = collision_metrics(rows)
    expected = rows.streams.logp_gen[rows.mask].exp().mean()
    assert found == {"policy/collision": pytest.approx(float(expected), rel=1e-5)}
    for episode in rows.episodes:
        episode.renyi = torch.full(episode.tokens.shape, 0.25)
    assert collision_metrics(rows)["policy/renyi"] == pytest.approx(0.25)
    rows.streams.logp_gen = None  # a data set is replayed
    assert collision_metrics(rows) == {}


def test_collision_estimates_the_sum_of_squares_without_bias():
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    episode = Episode(Prompt("p", ""), [], drawn, "", "stop", logp=p[drawn].log(), entropy=p[drawn])
    rows = make_batch([episode], None, group_size=1)
    assert collision_metrics(rows)["policy/collision"] == pytest.approx(0.36 + 0.09 + 0.01, abs=2e-3)


@pytest.mark.parametrize(("group_size", "share"), [(1, None), (2, 0.5)])
def test_a_group_of_one_is_no_group_with_equal_rewards(group_size, share):
    """What REINFORCE trains on has no groups to speak of."""
    made = make_batch(episodes()[:4], [1.0, 1.0, 0.0, 1.0], group_size=group_size)
    row = rollout_metrics(made, Scores([1.0, 1.0, 0.0, 1.0], {}, {}, {}, []))
    assert row.get("group/zero_variance") == share


def test_repetition_counts_what_stood_earlier():
    assert repetition([torch.arange(50)]) == 0.0
    assert repetition([torch.full((13,), 7)]) == pytest.approx(9 / 10)  # ten 4-grams, one kind
    assert repetition([torch.arange(3)]) is None
    assert repetition([torch.arange(50), torch.full((13,), 0), torch.arange(2)]) == pytest.approx(0.45)
    swapped = torch.tensor([1, 2, 3, 4, 4, 3, 2, 1])
    assert repetition([swapped]) == 0.0  # the order counts


def test_fork_words_are_ranked_by_mean_entropy():
    rows = batch()
    rows.episodes = rows.episodes[:1]
    tokens = torch.tensor([3, 4, 3, 5, 6, 4])
    rows.episodes[0].tokens = tokens
    rows.mask = torch.ones(1, 6, dtype=torch.bool)
    rows.streams = Streams(entropy_gen=torch.tensor([[1.0, 3.0, 2.0, 9.0, 0.5, 1.0]]))
    words = {3: "so", 4: " the", 5: "once", 6: " so"}
    tokenizer = SimpleNamespace(decode=lambda ids: words[ids[0]])
    assert fork_words(rows, tokenizer) == [
        {"word": "the", "entropy": 2.0, "count": 2},
        {"word": "so", "entropy": pytest.approx(3.5 / 3, abs=1e-5), "count": 3},
    ]
    rows.streams.entropy_gen = None
    assert fork_words(rows, tokenizer) == []


def test_pass_at_k_is_the_mean_over_all_choices():
    from itertools import combinations

    correct = [[True, False, False, True, False], [False] * 5, [True] * 5]
    for k in range(1, 6):
        chance = [sum(map(any, combinations(p, k))) / len(list(combinations(p, k))) for p in correct]
        assert pass_at_k(correct, k) == pytest.approx(chance)


def test_effect_metrics_are_means_over_tokens_and_need_the_samplers_sums():
    rows = batch()
    sampling, advantage = rows.at_sampling, torch.where(rows.mask, 1.0, 0.0)
    advantage[0] = 0.0
    numbers = (sampling.logp, sampling.entropy, sampling.collision, sampling.collision_logp)
    effect = entropy_effect(*numbers, advantage, rows.mask)
    found = effect_metrics(sampling, advantage, rows.mask)
    assert found["entropy/effect"] == pytest.approx(float(effect[rows.mask].mean()))
    pushed = rows.mask & (advantage != 0)
    assert found["entropy/spending"] == pytest.approx(float((effect[pushed] < 0).double().mean()))
    assert effect_metrics(sampling._replace(collision=None), advantage, rows.mask) == {}
    assert "entropy/spending" not in effect_metrics(sampling, 0 * advantage, rows.mask)

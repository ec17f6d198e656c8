"""Semantic entropy and EMPO's reward."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import semantic as oracle

from klent import objectives as O
from objectives.helpers import assert_close

answers = st.lists(st.tuples(st.integers(-2, 3), st.integers(0, 2)), min_size=1, max_size=12)
law = settings(max_examples=40, deadline=None)


def test_semantic_table() -> None:
    # group 4: three agree, one does not; group 9: all agree; group 0: no two, one of them without an answer
    cluster = torch.tensor([5, 9, 5, 5, 5, 2, 1, -1, 9])
    group = torch.tensor([4, 9, 4, 4, 9, 4, 0, 0, 9])
    cluster[4] = 9
    h = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    entropy = O.semantic_entropy(cluster, group)
    assert_close(entropy, [h, 0.0, h, h, 0.0, h, math.log(2), math.log(2), 0.0], 1e-6)
    reward = O.empo_reward(cluster, group)
    assert_close(reward, [0.75, 1.0, 0.75, 0.75, 1.0, 0.25, 0.5, 0.0, 1.0], 1e-6)


def test_thresholds_leave_out_whole_groups() -> None:
    cluster = torch.tensor([5, 5, 5, 2, 0, 0, 0, 0, 0, 1, 2, 3])
    group = torch.tensor([0] * 4 + [1] * 4 + [2] * 4)
    some, none, full = [0.75, 0.75, 0.75, 0.25], [0.0] * 4, [0.25] * 4
    assert O.empo_reward(cluster, group).tolist() == [*some, 1.0, 1.0, 1.0, 1.0, *full]
    assert O.empo_reward(cluster, group, low=0.1).tolist() == [*some, *none, *full]
    assert O.empo_reward(cluster, group, high=1.3).tolist() == [*some, 1.0, 1.0, 1.0, 1.0, *none]
    assert O.empo_reward(cluster, group, low=0.1, high=1.3).tolist() == [*some, *none, *none]
    # the ends are left out: entropy 0 is not above 0, log 4 not below log 4
    assert O.empo_reward(cluster, group, low=0, high=math.log(4)).tolist() == [*some, *none, *none]


@pytest.mark.parametrize("size", range(1, 20))
def test_ends_are_exact_for_every_size(size: int) -> None:
    together, apart = torch.zeros(size, dtype=torch.int64), torch.arange(size)
    group = torch.zeros(size, dtype=torch.int64)
    assert not O.semantic_entropy(together, group).any()
    assert not O.empo_reward(together, group, low=0).any()
    assert not O.empo_reward(apart, group, high=math.log(size) or 0.1, low=0 if size == 1 else None).any()


@law
@given(pairs=answers, bounds=st.sampled_from([(None, None), (0.3, None), (None, 0.9), (0.3, 0.9)]))
def test_semantic_agrees_with_oracle(
    pairs: list[tuple[int, int]], bounds: tuple[float | None, float | None]
) -> None:
    cluster, group = (list(ids) for ids in zip(*pairs, strict=True))
    low, high = bounds
    entropy, reward = oracle.semantic(cluster, group, low, high)
    assert_close(O.semantic_entropy(torch.tensor(cluster), torch.tensor(group)), entropy, 1e-6)
    actual = O.empo_reward(torch.tensor(cluster), torch.tensor(group), low=low, high=high)
    assert_close(actual, reward, 1e-6)


@law
@given(pairs=answers, seed=st.integers(0, 100))
def test_names_and_order_do_not_matter(pairs: list[tuple[int, int]], seed: int) -> None:
    cluster, group = (torch.tensor(ids) for ids in zip(*pairs, strict=True))
    before = cluster.clone(), group.clone()
    order = torch.randperm(len(cluster), generator=torch.Generator().manual_seed(seed))
    renamed = torch.where(cluster < 0, -7, 3 * cluster + 2)
    for function in (O.semantic_entropy, O.empo_reward):
        expected = function(cluster, group)
        assert torch.equal(function(cluster[order], group[order]), expected[order])
        assert torch.equal(function(renamed, 10 - 5 * group), expected)
    assert torch.equal(cluster, before[0])
    assert torch.equal(group, before[1])


def test_mean_reward_is_the_chance_that_two_answers_agree() -> None:
    # 4, 2, 1, 1 of 8: Σ p² = (16 + 4 + 1 + 1)/64
    cluster = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3])
    reward = O.empo_reward(cluster, torch.zeros_like(cluster))
    assert reward.mean().item() == pytest.approx(22 / 64)


def test_its_gradient_is_that_of_the_collision_probability_and_not_of_the_entropy() -> None:
    # with the cluster's true probability as reward: ∇ of half Σ p², and not of Σ p log p
    z = torch.tensor([0.9, 0.8, -2.0], dtype=torch.float64, requires_grad=True)
    p = z.softmax(dim=0)
    logp = z.detach().log_softmax(dim=0)
    gradient = -O.reinforce_logit_gradient(logp, logp.exp())
    (collision,) = torch.autograd.grad(p.square().sum() / 2, z, retain_graph=True)
    assert_close(gradient, collision)
    (negentropy,) = torch.autograd.grad((p * p.log()).sum(), z)
    assert_close(-O.reinforce_logit_gradient(logp, logp), negentropy)
    assert torch.nn.functional.cosine_similarity(gradient, negentropy, dim=0) < 0.9

"""Baselines of groups and batches, generalised advantage estimation, reward-to-go."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import advantage as oracle

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, mask_of, random_tokens, table

CASES = {
    "reward_weights": [{"beta": 0.5}],
    "gae": [{"gamma": 0.9, "lam": 0.8}],
    "reward_to_go": [{"gamma": 0.9}],
}
IN_ORDER = {"gae": "what follows a token", "reward_to_go": "what follows a token"}

NAN = math.nan
PAIR = torch.tensor([0.0, 1.0])


def test_group_advantage_table() -> None:
    # group 7: rewards 1, 0, 0.5: mean 0.5, squares 0.25 + 0.25 + 0 over n - 1 = 2: std 0.5. Group 3: 2, 4.
    rewards = torch.tensor([1.0, 2.0, 0.0, 4.0, 0.5], dtype=torch.float64)
    group = torch.tensor([7, 3, 7, 3, 7])
    assert_close(O.group_advantage(rewards, group, scale="none"), [0.5, -1.0, -0.5, 1.0, 0.0])
    assert_close(O.group_advantage(rewards, group), [1.0, -math.sqrt(0.5), -1.0, math.sqrt(0.5), 0.0])


def test_leave_one_out_table() -> None:
    # group 7: 1 against the mean of (0, 0.5), 0 against (1, 0.5), 0.5 against (1, 0)
    rewards = torch.tensor([1.0, 2.0, 0.0, 4.0, 0.5], dtype=torch.float64)
    assert_close(O.leave_one_out(rewards, torch.tensor([7, 3, 7, 3, 7])), [0.75, -2.0, -0.75, 2.0, 0.0])


def test_unscorable_rewards_leave_the_baseline_alone() -> None:
    # without the third the group is 1 and 0
    rewards = torch.tensor([1.0, 0.0, NAN, math.inf], dtype=torch.float64)
    group = torch.zeros(4, dtype=torch.int64)
    assert_close(O.group_advantage(rewards, group, scale="none"), [0.5, -0.5, 0.0, 0.0])
    assert_close(O.group_advantage(rewards, group), [math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0])
    assert_close(O.leave_one_out(rewards, group), [1.0, -1.0, 0.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "rewards",
    [
        [0.1, 0.1, 0.1],  # their mean in floats is not 0.1
        [0.1 + 0.2, 0.3, 0.3],  # equal up to rounding
        [1e6 + 0.1] * 7,
        [-0.7] * 3 + [NAN],
        [5.0],
        [5.0, NAN, NAN],
        [NAN, NAN],
        [0.0] * 4,
    ],
)
def test_groups_that_tell_nothing_get_exactly_zero(rewards: list[float], dtype: torch.dtype) -> None:
    values = torch.tensor(rewards, dtype=dtype)
    group = torch.zeros(len(rewards), dtype=torch.int64)
    zeros = [0.0] * len(rewards)
    assert O.group_advantage(values, group, scale="std").tolist() == zeros
    assert O.group_advantage(values, group, scale="none").tolist() == zeros
    assert O.leave_one_out(values, group).tolist() == zeros
    assert O.group_advantage(values, group, scale="mean").tolist() == zeros
    assert O.reinforce_pp(values).tolist() == zeros
    assert O.reinforce_pp_baseline(values, group).tolist() == zeros


def test_no_completion_is_no_error() -> None:
    nothing, group = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert O.group_advantage(nothing, group).shape == (0,)
    assert O.leave_one_out(nothing, group).shape == (0,)
    assert O.reinforce_pp(nothing).shape == O.reinforce_pp_baseline(nothing, group).shape == (0,)


def test_reward_weights_table() -> None:
    # group 7: exp(0), exp(log 3) and exp(log 4) at beta 0.5, over their sum 8 and times 3; group 3 alone; one NaN
    rewards = torch.tensor([0.0, 2.0, math.log(3) / 2, NAN, math.log(4) / 2], dtype=torch.float64)
    group = torch.tensor([7, 3, 7, 7, 7])
    assert_close(O.reward_weights(rewards, group, beta=0.5), [3 / 8, 1.0, 9 / 8, 0.0, 12 / 8])
    assert O.reward_weights(torch.full((2,), NAN), torch.zeros(2, dtype=torch.int64), beta=1.0).tolist() == [
        0,
        0,
    ]
    far = torch.tensor([1e4, 0.0])  # exp(1e4) is no number
    assert O.reward_weights(far, torch.zeros(2, dtype=torch.int64), beta=1.0).tolist() == [2.0, 0.0]


REWARDS = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(-10, 10, width=16))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(REWARDS, st.integers(-2, 2)), min_size=1, max_size=9), st.randoms())
def test_group_estimators_agree_with_oracles_in_any_order(entries: list[tuple[float, int]], random) -> None:
    rewards, group = [entry[0] for entry in entries], [entry[1] for entry in entries]
    order = list(range(len(entries)))
    random.shuffle(order)
    shuffled = torch.tensor(rewards, dtype=torch.float64)[order], torch.tensor(group)[order]
    for scale in ("std", "none", "mean"):
        expected = torch.tensor(oracle.group_advantage(rewards, group, scale), dtype=torch.float64)[order]
        assert_close(O.group_advantage(*shuffled, scale=scale), expected, 1e-9)
    expected = torch.tensor(oracle.leave_one_out(rewards, group), dtype=torch.float64)[order]
    assert_close(O.leave_one_out(*shuffled), expected, 1e-9)
    expected = torch.tensor(oracle.reinforce_pp(rewards, None), dtype=torch.float64)[order]
    assert_close(O.reinforce_pp(shuffled[0]), expected, 1e-9)
    expected = torch.tensor(oracle.reinforce_pp(rewards, group), dtype=torch.float64)[order]
    assert_close(O.reinforce_pp_baseline(*shuffled), expected, 1e-9)


def test_advantages_over_the_mean_table() -> None:
    # group 7: mean 0.5; group 3: mean 0, and group 4 a mean below 0, which is no success rate
    rewards = torch.tensor([1.0, 0.25, 0.25, -1.0, 1.0, -3.0, 1.0], dtype=torch.float64)
    group = torch.tensor([7, 7, 7, 3, 3, 4, 4])
    assert_close(O.group_advantage(rewards, group, scale="mean"), [1.0, -0.5, -0.5, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("chance", [0.05, 0.3, 0.9])
def test_over_the_mean_the_gradient_is_that_of_the_log_cut_after_one_term_less(
    size: int, chance: float
) -> None:
    # every outcome of a group of coins, success with probability p: the score of a success is dp/p, else -dp/(1 - p)
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=size):
        rewards = torch.tensor(outcome, dtype=torch.float64)
        advantage = O.group_advantage(rewards, torch.zeros(size, dtype=torch.int64), scale="mean")
        score = rewards / chance - (1 - rewards) / (1 - chance)
        probability = math.prod(chance if r else 1 - chance for r in outcome)
        total += probability * float((advantage * score).mean())
    cut = sum((1 - chance) ** (k - 1) for k in range(1, size))  # d/dp of -Σ (1 - p)^k / k over k < size
    assert total == pytest.approx(cut, rel=1e-12)
    assert cut == pytest.approx((1 - (1 - chance) ** (size - 1)) / chance, rel=1e-9)


def test_reinforce_pp_table() -> None:
    # mean 1, squares 1 + 0 + 1 over n - 1 = 2: std 1; the unscorable is in neither
    rewards = torch.tensor([0.0, 1.0, 2.0, NAN], dtype=torch.float64)
    assert_close(O.reinforce_pp(rewards), [-1.0, 0.0, 1.0, 0.0])
    # differences ±1 in group 0, ±2 in group 1, 0 in group 2: squares 10 over n - 1 = 5
    rewards = torch.tensor([0.0, 2.0, 7.0, 3.0, 4.0, 4.0, NAN], dtype=torch.float64)
    group = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    s = math.sqrt(2)
    assert_close(O.reinforce_pp_baseline(rewards, group), [-1 / s, 1 / s, 2 / s, -2 / s, 0.0, 0.0, 0.0])


REFUSED = [
    (
        lambda: O.reward_weights(PAIR, PAIR.long(), beta=0.0),
        ValueError,
        "beta is 0.0, expected a number in (0,",
    ),
    (
        lambda: O.reward_weights(PAIR, PAIR.long()[:1], beta=1.0),
        ValueError,
        "group has shape [1], expected [2]",
    ),
    (lambda: O.reinforce_pp(torch.tensor([1, 2])), TypeError, "rewards has dtype torch.int64"),
    (lambda: O.reinforce_pp(torch.zeros(2, 2)), ValueError, "rewards has shape [2, 2], expected [n]"),
    (
        lambda: O.reinforce_pp_baseline(torch.zeros(4), torch.zeros(3, dtype=torch.int64)),
        ValueError,
        "group has shape [3], expected [4] as rewards has",
    ),
]


def test_std_makes_the_unit_of_the_reward_irrelevant() -> None:
    rewards = torch.tensor([0.2, 0.9, 0.4, 0.4], dtype=torch.float64)
    group = torch.zeros(4, dtype=torch.int64)
    assert_close(O.group_advantage(1e-6 * rewards - 3, group), O.group_advantage(rewards, group), 1e-8)


def test_gae_table() -> None:
    # gamma 0.5, lam 0.5. Tokens on the mask: r = (1, 0, 2), V = (0.5, 1, -1); the hole is skipped.
    # δ = (1 + 0.5·1 - 0.5, 0 + 0.5·(-1) - 1, 2 + 0 - (-1)) = (1, -1.5, 3)
    # A = (1 + 0.25·A₂, -1.5 + 0.25·3, 3) = (0.8125, -0.75, 3)
    rewards = table([1.0, NAN, 0.0, 2.0, NAN])
    values = table([0.5, NAN, 1.0, -1.0, NAN])
    out = O.gae(rewards, values, mask_of("x.xx."), gamma=0.5, lam=0.5)
    assert_close(out, table([0.8125, 0.0, -0.75, 3.0, 0.0]))


def test_reward_to_go_table() -> None:
    rewards, mask = table([1.0, NAN, 2.0, 4.0], [3.0, 0.0, 0.0, 0.0]), mask_of("x.xx", "....")
    assert_close(O.reward_to_go(rewards, mask), table([7.0, 0.0, 6.0, 4.0], [0.0] * 4))
    # 4; 2 + 0.5·4; 1 + 0.5·4
    assert_close(O.reward_to_go(rewards, mask, gamma=0.5), table([3.0, 0.0, 4.0, 4.0], [0.0] * 4))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.0, 1.0)])
def test_gae_agrees_with_the_sum_it_stands_for(gamma: float, lam: float) -> None:
    tokens = random_tokens(0)
    rewards, values, mask = tokens["advantage"], tokens["entropy"], tokens["mask"]
    arrays = rewards.numpy(), values.numpy(), mask.numpy()
    assert_close(O.gae(rewards, values, mask, gamma=gamma, lam=lam), oracle.gae(*arrays, gamma, lam))
    assert_close(
        O.reward_to_go(rewards, mask, gamma=gamma),
        oracle.gae(arrays[0], 0 * arrays[1], arrays[2], gamma, 1.0),
    )


def test_defaults_of_gae_are_reward_to_go_minus_value() -> None:
    tokens = random_tokens(1)
    rewards, values, mask = tokens["advantage"], tokens["entropy"], tokens["mask"]
    assert_close(O.gae(rewards, values, mask), torch.where(mask, O.reward_to_go(rewards, mask) - values, 0.0))


def test_advantages_carry_no_gradient() -> None:
    rewards = torch.tensor([1.0, 0.0], requires_grad=True)
    group = torch.zeros(2, dtype=torch.int64)
    tokens = random_tokens(2)
    x = tokens["entropy"].requires_grad_()
    for out in (
        O.group_advantage(rewards, group),
        O.group_advantage(rewards, group, scale="mean"),
        O.leave_one_out(rewards, group),
        O.reinforce_pp(rewards),
        O.reinforce_pp_baseline(rewards, group),
        O.gae(x, x, tokens["mask"]),
        O.reward_to_go(x, tokens["mask"]),
    ):
        assert not out.requires_grad


MUTANTS = [
    Mutant(
        "weights that add up to 1",
        "advantage.py",
        "return weight * count /",
        "return weight /",
        test_reward_weights_table,
    ),
    Mutant(
        "beta multiplies",
        "advantage.py",
        "(below / beta).exp()",
        "(below * beta).exp()",
        test_reward_weights_table,
    ),
    Mutant(
        "a negative mean divides",
        "advantage.py",
        "torch.where(mean > 0, centred / mean.clamp(min=torch.finfo(mean.dtype).tiny), 0.0)",
        "torch.where(mean != 0, centred / mean, 0.0)",
        test_advantages_over_the_mean_table,
    ),
    Mutant(
        "over the root of the mean",
        "advantage.py",
        "centred / mean.clamp(min=torch.finfo(mean.dtype).tiny)",
        "centred / mean.clamp(min=torch.finfo(mean.dtype).tiny).sqrt()",
        test_advantages_over_the_mean_table,
    ),
    Mutant(
        "no mean taken off",
        "advantage.py",
        "known - total / count.clamp(min=1)",
        "known",
        test_reinforce_pp_table,
    ),
    Mutant(
        "the population's deviation over the batch",
        "advantage.py",
        "(count - 1).clamp(min=1)).sqrt()",
        "count.clamp(min=1)).sqrt()",
        test_reinforce_pp_table,
    ),
    Mutant(
        "unscorable in the deviation",
        "advantage.py",
        "count = rewards.isfinite().sum().to(centred.dtype)",
        "count = torch.tensor(float(len(rewards)), dtype=centred.dtype)",
        test_reinforce_pp_table,
    ),
]

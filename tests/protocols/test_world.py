"""Two ranks, here two threads: what they add up to is what one rank has."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers_training import GRPO, episodes, pairs, updater
from tiny import tiny_model

from klent.control.pairing import BestWorst
from klent.policies.causal_lm.critic import Critic
from klent.policies.causal_lm.policy import CausalPolicy
from klent.streams.batch import Batch, make_batch
from klent.tasks.returns import Returns
from klent.training.objective import Objective
from klent.training.update import Updater, UpdateResult

REWARDS = [1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 0.0, 0.25, 0.0, 0.0, 0.0, 2.0]
REDUCTIONS = [{"over": "tokens"}, {"over": "sequences"}, {"over": "constant", "denominator": 9.0}]


class Threads:
    """A world of threads that meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[torch.Tensor] = [torch.zeros(())] * size

    def seat(self, rank: int) -> "Seat":
        return Seat(self, rank)


class Seat:
    """One thread's place in it; a klent.training.world.World."""

    def __init__(self, world: Threads, rank: int) -> None:
        self.world = world
        self.rank = rank
        self.size = world.size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        self.world.values[self.rank] = value.clone()
        self.world.barrier.wait()
        total = torch.stack(self.world.values).sum(0)
        self.world.barrier.wait()
        return total


def step_of(world: object | None, reduce: dict, **options: object) -> Updater:
    objective = Objective({**GRPO[0], "entropy_loss": {"coef": -0.1}}, GRPO[1], None)
    step = updater(objective, reduce=reduce, world=world, **options)
    step.learning_rate = lambda number: 0.0
    return step


def rows_of(prompts: list[int]) -> Batch:
    """Some of the three prompts, four completions each."""
    kept = [row for prompt in prompts for row in range(4 * prompt, 4 * prompt + 4)]
    everything = episodes()
    return make_batch([everything[row] for row in kept], [REWARDS[row] for row in kept], group_size=4)


def run(step: Updater, rows: Batch) -> UpdateResult:
    step.objective.estimate_advantage(rows, step.world)
    return step.run(rows, seed=0)


def together(make: Callable[[object], tuple[Updater, Batch]]) -> list[tuple[Updater, UpdateResult]]:
    """Each rank in a thread of its own."""
    world, ends, errors = Threads(2), {}, []
    made = [
        make(world.seat(rank)) for rank in range(2)
    ]  # not in the threads: models are made by a global seed

    def work(rank: int) -> None:
        try:
            step, rows = made[rank]
            ends[rank] = (step, run(step, rows))
        except BaseException as error:
            errors.append(error)
            world.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors, errors
    return [ends[0], ends[1]]


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=lambda r: r["over"])
def test_two_ranks_with_uneven_groups_are_one(reduce):
    one = step_of(None, reduce)
    expected = run(one, rows_of([0, 1, 2]))
    parts = {0: [0], 1: [1, 2]}  # four and eight completions, of other lengths
    ends = together(lambda seat: (step_of(seat, reduce), rows_of(parts[seat.rank])))
    for step, result in ends:
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert result.sums.keys() == expected.sums.keys()
        for name, (total, count) in expected.sums.items():
            assert result.sums[name] == (pytest.approx(total, rel=1e-5), count)
        for mine, theirs in zip(step.parameters, one.parameters, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-6, rtol=1e-4)


def with_critic(world: object | None, rows: Batch) -> tuple[Updater, Batch]:
    """PPO with a critic's own layers; values, log-probabilities and reference as the loop measures them."""
    terms = {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}, "value_loss": {"coef": 0.3, "clip": 0.2}}
    advantage = {"gae": {"gamma": 0.9, "lam": 0.8}, "whiten": {"shift": True}}
    objective = Objective(terms, advantage, {"kl_in_reward": {"coef": 0.1}})
    step = updater(objective, reduce={"over": "tokens"}, world=world)
    critic = Critic(32, tiny_model(seed=3))
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    step.policy.critic = critic
    step.optimizer = torch.optim.SGD(step.policy.trainable().values(), lr=0.0)
    step.parameters = list(step.policy.trainable().values())
    step.learning_rate = lambda number: 0.0
    before = step.measure(rows, range(len(rows)), values=True)
    rows.streams.logp_old, rows.streams.value_old = before.logp, before.value
    other = CausalPolicy(tiny_model(seed=5), temperature=1.0)
    rows.streams.logp_ref = step.measure(rows, range(len(rows)), other).logp
    return step, rows


def test_two_ranks_share_a_critic_and_whiten_over_both():
    """Ranks with other rewards and lengths: means and deviations are those of all tokens of the step."""
    one, whole = with_critic(None, rows_of([0, 1, 2]))
    expected = run(one, whole)
    made = [rows_of([0]), rows_of([1, 2])]
    ends = together(lambda seat: with_critic(seat, made[seat.rank]))
    for step, result in ends:
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        for mine, theirs in zip(step.parameters, one.parameters, strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    found = torch.cat([rows.streams.advantage[rows.mask] for rows in made])
    torch.testing.assert_close(found, whole.streams.advantage[whole.mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline"])
def test_two_ranks_compare_with_the_rewards_of_both(name):
    made = [rows_of([0]), rows_of([1, 2])]
    whole = rows_of([0, 1, 2])
    made[0].streams.rewards[1] = made[1].streams.rewards[1] = whole.streams.rewards[[1, 5]] = torch.nan
    Objective(GRPO[0], {name: {}}, None).estimate_advantage(whole, None)
    together(lambda seat: (updater(Objective(GRPO[0], {name: {}}, None), world=seat), made[seat.rank]))
    found = torch.cat([rows.streams.advantage[rows.mask] for rows in made])
    torch.testing.assert_close(found, whole.streams.advantage[whole.mask], atol=1e-6, rtol=1e-5)
    assert found.abs().max() > 0.5


def test_a_rank_whose_completions_are_all_idle_still_takes_the_step():
    def make(seat):
        rows = rows_of([seat.rank])
        if seat.rank == 0:
            rows.streams.rewards[:] = 1.0  # a group of equal rewards teaches nothing
        step = updater(reduce={"over": "tokens"}, world=seat, lr=0.1)
        return step, rows

    (idle, idle_result), (busy, busy_result) = together(make)
    assert idle_result.tokens == 0
    assert not idle_result.before.known.any()
    assert busy_result.tokens > 0
    assert idle_result.grad_norm == busy_result.grad_norm > 0
    for left, right in zip(idle.parameters, busy.parameters, strict=True):
        assert torch.equal(left, right)


def turns_of(prompts: list[int], turns: int) -> Batch:
    """Some of three starts, four episodes each, cut into so many turns at most, with sums from each turn on."""
    made, everything = [], episodes()
    for prompt in prompts:
        for row in range(4 * prompt, 4 * prompt + 4):
            episode, count = everything[row], 1 + (row + prompt) % turns
            turn = (torch.arange(len(episode.tokens)) * count) // len(episode.tokens)
            count = int(turn.max()) + 1
            paid = tuple(REWARDS[row] + 0.3 * k * (-1) ** (row + k) for k in range(count))
            made.append(replace(episode, turn=turn, rewards=paid))
    scores = Returns(discount=0.5, credit="turn").score_episodes(made)
    scores.to_go[1] = [torch.nan] * len(scores.to_go[1])  # its environment failed
    scores.reward[1] = torch.nan
    return make_batch(made, scores.reward, group_size=4, to_go=scores.to_go)


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline", "group_advantage"])
def test_two_ranks_whose_longest_episodes_differ_credit_turns_alike(name):
    """One rank has episodes of up to two turns, the other of up to five."""
    made = [turns_of([0], 2), turns_of([1, 2], 5)]
    turns = [rows.to_go.shape[1] for rows in made]
    assert turns[0] < turns[1]
    whole = make_batch(
        [episode for rows in made for episode in rows.episodes],
        [*made[0].reward.tolist(), *made[1].reward.tolist()],
        group_size=4,
        to_go=[
            row[: e.turns].tolist() for rows in made for row, e in zip(rows.to_go, rows.episodes, strict=True)
        ],
    )
    Objective(GRPO[0], {name: {}}, None).estimate_advantage(whole, None)
    together(lambda seat: (updater(Objective(GRPO[0], {name: {}}, None), world=seat), made[seat.rank]))
    found = torch.cat([rows.streams.advantage[rows.mask] for rows in made])
    torch.testing.assert_close(found, whole.streams.advantage[whole.mask], atol=1e-6, rtol=1e-5)
    assert (found != 0).double().mean() > 0.5


@pytest.mark.parametrize("sampled", [False, True])
def test_a_rank_without_a_pair_goes_along_with_one_that_has_some(sampled):
    """Pairs of a file of which none is chosen, and groups of sampled answers whose rewards are all equal."""
    terms = {"dpo": {"beta": 0.5}} if not sampled else {"simpo": {"beta": 2.0, "margin": 1.0}}

    def make(seat, prompts=None):
        objective = Objective(terms, None, None)
        step = updater(objective, reduce={"over": "pairs"}, world=seat)
        step.learning_rate = lambda number: 0.0
        if not sampled:
            rows = pairs()
            idle = seat is not None and seat.rank == 0
            rows.streams.choices["mask"] = rows.mask & (not idle)
            return step, rows
        everything = episodes()
        first = 0 if seat is not None and seat.rank == 0 else 4
        some, rewards = everything[first : first + 4], [1.0] * 4 if first == 0 else [0.0, 1.0, 0.5, 0.0]
        rows = make_batch(some, rewards, group_size=4, whole_groups=True)
        BestWorst().after_rollout(rows)
        return step, rows

    one, rows = make(None)
    expected = run(one, rows)
    (idle, nothing), (busy, result) = together(make)
    assert nothing.tokens == 0 < result.tokens
    for both in (nothing, result):
        assert both.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert both.grad_norm > 1e-4
        assert both.loss == pytest.approx(expected.loss, rel=1e-5)
        assert both.sums == {name: pytest.approx(value) for name, value in expected.sums.items()}
    for mine, theirs in zip(idle.parameters, busy.parameters, strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_a_world_that_does_not_add_up_is_found_out():
    class Alone(Seat):
        def sum(self, value):
            return super().sum(value) * 0 + value  # meets the others and forgets what they said

    one = step_of(None, REDUCTIONS[0])
    expected = run(one, rows_of([0, 1, 2]))
    parts = {0: [0], 1: [1, 2]}
    ends = together(
        lambda seat: (step_of(Alone(seat.world, seat.rank), REDUCTIONS[0]), rows_of(parts[seat.rank]))
    )
    assert abs(ends[0][1].grad_norm - expected.grad_norm) > 0.05 * expected.grad_norm

"""Two ranks, here two threads: what they do together is what one rank does alone."""

import math
from dataclasses import fields

import pytest
import torch
from helpers_training import GRPO, PROMPTS, batch, episodes, pairs, updater
from hypothesis import given
from hypothesis import strategies as st
from tiny import TURN_END, tiny_model, tiny_tokenizer
from worlds import Seat, together

from klent.control.pairing import BestWorst
from klent.kit.world import OneProcess, shares
from klent.models.load import LoadedModel
from klent.policies.causal_lm.critic import Critic
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.denoiser.actor import DenoisingActor
from klent.policies.denoiser.network import Denoiser, DenoiserConfig
from klent.policies.denoiser.sampler import make_steps
from klent.rollout.denoising_engine import DenoisingEngine
from klent.rollout.shared_engine import SharedEngine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.rollout.wire import pack, unpack
from klent.streams.batch import Batch, make_batch
from klent.streams.episode import Episode, MixtureTrace
from klent.streams.prompt import Prompt
from klent.training.objective import Objective
from klent.training.update import Updater, UpdateResult

REDUCTIONS = [{"over": "tokens"}, {"over": "sequences"}, {"over": "constant", "denominator": 9.0}]


def step_of(world: object | None, reduce: dict, **options: object) -> Updater:
    objective = Objective({**GRPO[0], "entropy_loss": {"coef": -0.1}}, GRPO[1], None)
    step = updater(objective, reduce=reduce, world=world, **options)
    step.learning_rate = lambda number: 0.0
    return step


def run(made: tuple[Updater, Batch]) -> tuple[Updater, UpdateResult]:
    step, rows = made
    step.objective.estimate_advantage(rows)
    return step, step.run(rows, seed=0)


def check_alike(
    found: tuple[Updater, UpdateResult], expected: tuple[Updater, UpdateResult], rel: float
) -> None:
    """Every number of a step and the gradient behind it are those of one rank."""
    (step, result), (one, wanted) = found, expected
    assert result.loss == pytest.approx(wanted.loss, rel=rel, abs=rel)
    assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=rel)
    assert wanted.grad_norm > 1e-3
    assert result.targets == wanted.targets
    assert result.sums.keys() == wanted.sums.keys()
    for name, (total, count) in wanted.sums.items():
        assert result.sums[name] == (pytest.approx(total, rel=10 * rel, abs=rel), count)
    torch.testing.assert_close(result.coefficient, wanted.coefficient, atol=1e-5, rtol=1e-4)
    assert wanted.before is not None
    assert torch.equal(result.before.known, wanted.before.known)
    torch.testing.assert_close(result.before.logp, wanted.before.logp, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(step.parameters, one.parameters, strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=rel, rtol=100 * rel)


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=lambda r: r["over"])
def test_two_ranks_are_one(reduce):
    """Three prompts of unequal completions: one rank has one of them, the other two."""
    expected = run((step_of(None, reduce), batch()))
    for end in together(lambda seat: (step_of(seat, reduce), batch()), run):
        check_alike(end, expected, rel=2e-6)


def test_in_float64_they_are_equal_to_twelve_digits():
    def make(world):
        return step_of(world, {"over": "tokens"}, model=tiny_model().double()), batch()

    expected = run(make(None))
    for end in together(make, run, size=3):
        check_alike(end, expected, rel=1e-12)


def test_ranks_that_have_fewer_prompts_than_ranks_share_the_completions_of_one():
    def make(world):
        rows = make_batch(episodes()[4:8], [1.0, 0.0, 0.0, 0.5], group_size=4)
        return step_of(world, {"over": "tokens"}), rows

    expected = run(make(None))
    ends = together(make, run, size=3)
    for end in ends:
        check_alike(end, expected, rel=2e-6)


def test_a_rank_with_nothing_to_compute_still_takes_the_step():
    """Two groups whose rewards are equal teach nothing, and the third is computed by one rank of two."""
    rewards = [1.0] * 8 + [1.0, 0.0, 0.0, 0.5]

    def make(world):
        rows = make_batch(episodes(), rewards, group_size=4, whole_groups=True)
        return updater(reduce={"over": "tokens"}, world=world, lr=0.1), rows

    one, expected = run(make(None))
    for step, result in together(make, run):
        assert result.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert result.tokens == expected.tokens > 0
        for mine, theirs in zip(step.parameters, one.parameters, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_what_is_chosen_is_chosen_among_the_tokens_of_all_ranks():
    def make(world):
        chosen = {"mask": {"high_entropy_tokens": {"fraction": 0.3}}}
        step = updater(Objective(*GRPO, chosen), reduce={"over": "tokens"}, world=world)
        step.learning_rate = lambda number: 0.0
        return step, batch()

    _, expected = run(make(None))
    for _, result in together(make, run):
        assert torch.equal(result.chosen["mask"], expected.chosen["mask"])
        assert 0 < int(result.chosen["mask"].sum()) < int(batch().mask.sum()) / 2


def with_critic(world: object | None) -> tuple[Updater, Batch, CausalPolicy]:
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
    return step, batch(), CausalPolicy(tiny_model(seed=5), temperature=1.0)


def with_measured(made: tuple[Updater, Batch, CausalPolicy]) -> tuple[Updater, UpdateResult]:
    step, rows, other = made
    before = step.measure(rows, range(len(rows)), values=True)
    rows.streams.logp_old, rows.streams.value_old = before.logp, before.value
    rows.streams.logp_ref = step.measure(rows, range(len(rows)), other).logp
    return run((step, rows))


def test_ranks_share_a_critic_and_what_is_measured():
    one = with_critic(None)
    whole, expected = one[1], with_measured(one)
    made = {}

    def make(seat):
        made[seat.rank] = with_critic(seat)
        return made[seat.rank]

    for rank, end in enumerate(together(make, with_measured)):
        check_alike(end, expected, rel=1e-5)
        rows = made[rank][1]
        torch.testing.assert_close(rows.streams.logp_ref, whole.streams.logp_ref, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rows.streams.value_old, whole.streams.value_old, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampled", [False, True])
def test_ranks_never_part_a_pair(sampled):
    """Pairs of a file, and the best and worst of sampled groups, one of which has equal rewards and no pair."""
    terms = {"dpo": {"beta": 0.5}} if not sampled else {"simpo": {"beta": 2.0, "margin": 1.0}}

    def make(world):
        step = updater(Objective(terms, None, None), reduce={"over": "pairs"}, world=world)
        step.learning_rate = lambda number: 0.0
        if not sampled:
            return step, pairs(3)
        rewards = [1.0] * 4 + [0.0, 1.0, 0.5, 0.0, 2.0, 0.0, 0.0, 1.0]
        rows = make_batch(episodes(), rewards, group_size=4, whole_groups=True)
        BestWorst().after_rollout(rows)
        return step, rows

    expected = run(make(None))
    for end in together(make, run, size=3):
        check_alike(end, expected, rel=1e-5)


def test_a_world_that_does_not_add_up_is_found_out():
    class Alone(Seat):
        def sum(self, value):
            return super().sum(value) * 0 + value  # meets the others and forgets what they said

    _, expected = run((step_of(None, REDUCTIONS[0]), batch()))
    ends = together(lambda seat: (step_of(Alone(seat.world, seat.rank), REDUCTIONS[0]), batch()), run)
    assert abs(ends[0][1].grad_norm - expected.grad_norm) > 0.05 * expected.grad_norm


@given(st.lists(st.floats(0, 100), max_size=12), st.integers(1, 5))
def test_shares_are_all_items_once_and_near_even(costs, size):
    given_to = shares(costs, size)
    assert len(given_to) == size
    assert sorted(item for items in given_to for item in items) == list(range(len(costs)))
    assert all(items == sorted(items) for items in given_to)
    loads = [sum(costs[item] for item in items) for items in given_to]
    assert max(loads) - min(loads) <= max(costs, default=0.0) + 1e-9


def sampler(world: object | None) -> object:
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END, 20, 21, 22, 23, 24))
    engine = TransformersEngine(loaded, SamplingOptions(max_tokens=9, temperature=1.0))
    return engine if world is None else SharedEngine(engine, world)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_sample_what_one_process_samples(size):
    """Also where a rank has no prompt to answer."""
    expected = sampler(None).generate(PROMPTS, group_size=4, seed=7)
    for found in together(sampler, lambda engine: engine.generate(PROMPTS, group_size=4, seed=7), size):
        assert [e.tokens.tolist() for e in found] == [e.tokens.tolist() for e in expected]
        assert [e.prompt for e in found] == [e.prompt for e in expected]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.logp, theirs.logp, atol=1e-5, rtol=1e-5)
    assert len({tuple(e.tokens.tolist()) for e in expected}) > 6


def every_field() -> Episode:
    """An episode none of whose fields has its default, with numbers that text would round."""
    length = 5

    def grid(scale: float) -> torch.Tensor:
        return -torch.rand(length, generator=torch.Generator().manual_seed(int(scale * 100))) * scale

    trace = MixtureTrace(*(grid(0.1 + k) for k in range(len(fields(MixtureTrace)))))
    return Episode(
        PROMPTS[1],
        [3, 1, 2],
        torch.tensor([5, 6, 7, 8, 9]),
        'text with 𝛼, a quote " and \x00',
        "length",
        logp=grid(3.3),
        entropy=grid(1.7),
        renyi=grid(0.9),
        collision_logp=grid(0.5),
        mixture=trace,
        rewards=(0.1 + 0.2, math.nan),
        preferred=True,
        problem="it broke",
        prefill=17,
        margin=0.1,
        policy_version=4,
        rescored=True,
        states=torch.randn(length, 3),
        actions=torch.randn(length, 2),
        acted=torch.tensor([True, True, False, True, True]),
        turn=torch.tensor([0, 0, 1, 1, 1]),
    )


def test_the_wire_keeps_every_field_bit_for_bit():
    whole = every_field()
    defaults = Episode(PROMPTS[0], [], torch.zeros(0, dtype=torch.long), "", "stop")
    for field in fields(Episode):
        value = getattr(whole, field.name)
        assert value is not None
        if not isinstance(value, torch.Tensor | MixtureTrace):
            assert value != getattr(defaults, field.name), f"{field.name} would be kept by chance"
    plain = episodes()[0]
    found = unpack(pack([whole, plain]), [whole.prompt, plain.prompt])
    for sent, received in zip((whole, plain), found, strict=True):
        check_same(sent, received)
    assert unpack(pack([]), []) == []


def check_same(sent: object, received: object) -> None:
    assert type(sent) is type(received)
    for field in fields(sent):
        mine, theirs = getattr(sent, field.name), getattr(received, field.name)
        if isinstance(mine, MixtureTrace):
            check_same(mine, theirs)
        elif isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs), field.name
        else:
            assert repr(mine) == repr(theirs), field.name  # NaN equals itself here


def test_a_wire_that_lost_an_episode_is_found_out():
    one = episodes()[0]
    with pytest.raises(ValueError, match="longer"):
        unpack(pack([one]), [one.prompt, one.prompt])


def test_one_process_hears_itself():
    world = OneProcess()
    assert world.gather(b"x") == [b"x"]
    assert Prompt("a", "b").number is None


def test_ranks_share_the_noise_of_a_denoiser():
    """Each image's noise is that of its place among all, whoever draws it."""
    net = Denoiser(DenoiserConfig(size=2, hidden=8, layers=1), generator=torch.Generator().manual_seed(0))
    actor = DenoisingActor(net, make_steps("ddpm", 3, high=6.0, low=-6.0))
    prompts = [Prompt(f"noise/{k}", "", {"noise": actor.size}) for k in range(5)]
    expected = DenoisingEngine(actor).generate(prompts, group_size=2, seed=3)
    shared = together(
        lambda seat: SharedEngine(DenoisingEngine(actor), seat),
        lambda engine: engine.generate(prompts, group_size=2, seed=3),
    )
    for found in shared:
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.actions, theirs.actions)
    assert len({tuple(e.actions.flatten().tolist()) for e in expected}) == 10

"""Cross-entropy, REINFORCE, PPO, GSPO, CISPO."""

import itertools
import math

import pytest
import torch
from oracles import surrogate as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {
    "ppo_clip": [{}, {"dual_clip": 1.3}, {"clip_low": 0.05, "clip_high": 0.05, "ratio": "sequence"}],
    "cispo": [{"ratio_max": 1.2}],
}

NAN = math.nan

# Probabilities, so that ratios can be read off: 1.5, 1.5, 0.5, 0.5, and a token off the mask.
LOGP = table([0.6, 0.6, 0.2, 0.2, 1.0]).log()
LOGP_OLD = table([0.4, 0.4, 0.4, 0.4, 1.0]).log()
ADVANTAGE = table([1.0, -1.0, 2.0, -2.0, 9.0])
MASK = mask_of("xxxx.")


def logp() -> Tensor:
    return LOGP.clone().requires_grad_()


def test_cross_entropy_table() -> None:
    x = table([-0.5, -2.0, NAN]).requires_grad_()
    out = O.cross_entropy(x, mask_of("xx."))
    assert_close(out.loss, table([0.5, 2.0, 0.0]))
    assert_close(slope(out.loss, x), table([-1.0, -1.0, 0.0]))


def test_reinforce_table() -> None:
    # -A·logp, and -A as its derivative
    x = table([-0.5, -2.0, -1.0, NAN]).requires_grad_()
    out = O.reinforce(x, table([1.0, -1.0, 0.5, NAN]), mask_of("xxx."))
    assert_close(out.loss, table([0.5, -2.0, 0.5, 0.0]))
    assert_close(slope(out.loss, x), table([-1.0, 1.0, -0.5, 0.0]))


def test_reinforce_follows_the_expected_reward() -> None:
    # over all 27 sequences of a small world, each with its own reward
    logits = world.policy(0)
    reward = world.policy(1)[:9].flatten()  # 27 numbers
    x = torch.tensor(logits, requires_grad=True)
    tokens = x.log_softmax(dim=1)[world.ROWS, world.SEQUENCES]
    advantage = torch.tensor(reward)[:, None].expand_as(tokens)
    loss = O.reinforce(tokens, advantage, torch.ones_like(tokens, dtype=torch.bool)).loss
    mean = (torch.tensor(world.sequence_probability(logits))[:, None] * loss).sum()
    expected = world.gradient(lambda z: float(world.sequence_probability(z) @ reward), logits)
    assert_close(slope(mean, x), -expected, 1e-8)


def test_ppo_clip_table() -> None:
    # ratio  A   min(ratio·A, clip·A)      loss  derivative
    #  1.5   1   min( 1.5,  1.2) =  1.2    -1.2   0
    #  1.5  -1   min(-1.5, -1.2) = -1.5     1.5   1.5
    #  0.5   2   min( 1.0,  1.6) =  1.0    -1.0  -1.0
    #  0.5  -2   min(-1.0, -1.6) = -1.6     1.6   0
    x = logp()
    out = O.ppo_clip(x, LOGP_OLD, ADVANTAGE, MASK)
    assert_close(out.loss, table([-1.2, 1.5, -1.0, 1.6, 0.0]))
    assert_close(slope(out.loss, x), table([0.0, 1.5, -1.0, 0.0, 0.0]))


def test_ppo_clip_bounds_are_separate() -> None:
    # as above with bounds 0.9 and 1.3
    out = O.ppo_clip(LOGP, LOGP_OLD, ADVANTAGE, MASK, clip_low=0.1, clip_high=0.3)
    assert_close(out.loss, table([-1.3, 1.5, -1.0, 1.8, 0.0]))


def test_ppo_clip_metrics_count_what_binds() -> None:
    # all four ratios are out of bounds; the advantage's sign lets the middle two pass
    metrics = O.ppo_clip(LOGP, LOGP_OLD, ADVANTAGE, MASK, clip_high=0.3).metrics
    assert metrics.keys() == {"ratio", "clip_low", "clip_high"}
    assert [float(x) for x in metrics["clip_high"]] == [1.0, 4.0]
    assert [float(x) for x in metrics["clip_low"]] == [1.0, 4.0]
    assert [float(x) for x in metrics["ratio"]] == pytest.approx([1.5 + 1.5 + 0.5 + 0.5, 4.0])


def test_ppo_clip_dual_bounds_bad_tokens_from_above() -> None:
    # the second token, ratio 1.5 and A = -1, now stops at 1.25
    x = logp()
    out = O.ppo_clip(x, LOGP_OLD, ADVANTAGE, MASK, dual_clip=1.25)
    assert_close(out.loss, table([-1.2, 1.25, -1.0, 1.6, 0.0]))
    assert_close(slope(out.loss, x), table([0.0, 0.0, -1.0, 0.0, 0.0]))
    assert [float(v) for v in out.metrics["clip_dual"]] == [1.0, 4.0]


def test_ppo_clip_unbounded_is_importance_sampling() -> None:
    x = logp()
    out = O.ppo_clip(x, LOGP_OLD, ADVANTAGE, MASK, clip_low=1, clip_high=math.inf)
    assert_close(out.loss, table([-1.5, 1.5, -1.0, 1.0, 0.0]))
    assert_close(slope(out.loss, x), table([-1.5, 1.5, -1.0, 1.0, 0.0]))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_ppo_clip_on_policy_is_reinforce(ratio: str) -> None:
    x = logp()
    out = O.ppo_clip(x, LOGP, ADVANTAGE, MASK, ratio=ratio)
    assert_close(slope(out.loss, x), table([-1.0, 1.0, -2.0, 2.0, 0.0]))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_ppo_clip_survives_a_ratio_that_overflows(ratio: str, advantage: float) -> None:
    x = torch.tensor([[-1.0]], requires_grad=True)
    old = torch.tensor([[-1001.0]])
    out = O.ppo_clip(x, old, torch.tensor([[advantage]]), mask_of("x"), ratio=ratio)
    assert_close(out.loss, [[-1.2 * advantage]], 1e-6)
    assert_close(slope(out.loss, x), [[0.0]])


def test_ppo_clip_sequence_table() -> None:
    # ratios 1.5 and 0.5 in the first rows: the sequence's is √0.75 = 0.866. A good one is only bounded from
    # above: free, derivative -0.866 on each token. A bad one is bounded at 0.9, no derivative. The last row
    # has one token on the mask, of ratio 0.5.
    x = LOGP[:, [0, 2, 4]].repeat(3, 1).requires_grad_()
    old = LOGP_OLD[:, [0, 2, 4]].repeat(3, 1)
    advantage = table([1.0] * 3, [-1.0] * 3, [1.0] * 3)
    out = O.ppo_clip(x, old, advantage, mask_of("xx.", "xx.", ".x."), clip_low=0.1, ratio="sequence")
    s = math.sqrt(0.75)
    assert_close(out.loss, table([-s, -s, 0.0], [0.9, 0.9, 0.0], [0.0, -0.5, 0.0]))
    assert_close(slope(out.loss, x), table([-s, -s, 0.0], [0.0, 0.0, 0.0], [0.0, -0.5, 0.0]))
    assert [float(v) for v in out.metrics["clip_low"]] == [2.0, 5.0]
    assert [float(v) for v in out.metrics["clip_high"]] == [0.0, 5.0]


def test_sequence_mean_of_the_sequence_ratio_is_gspo() -> None:
    tokens = random_tokens(3)
    shared = tokens["advantage"][:, :1].expand(-1, 6)
    arrays = [tokens[name].numpy() for name in ("logp", "logp_old")]

    def gspo(x: Tensor) -> Tensor:
        out = O.ppo_clip(
            x, tokens["logp_old"], shared, tokens["mask"], clip_low=0.1, clip_high=0.1, ratio="sequence"
        )
        return O.reduce_tokens(out.loss, tokens["mask"], over="sequences")

    expected = oracle.gspo_objective(*arrays, shared[:, 0].numpy(), tokens["mask"].numpy(), 0.1, 0.1)
    assert_close(gspo(tokens["logp"]), expected)
    # although a token's own loss depends on its neighbours, the sequence's mean has its true derivative
    assert torch.autograd.gradcheck(gspo, tokens["logp"].requires_grad_())


def test_cispo_table() -> None:
    # weights 1.5, 1.5, 0.5, 0.5, bounded by 1.2; the derivative is -weight·A whatever the sign
    x = logp()
    out = O.cispo(x, LOGP_OLD, ADVANTAGE, MASK, ratio_max=1.2)
    expected = table([-1.2, 1.2, -1.0, 1.0, 0.0])
    assert_close(slope(out.loss, x), expected)
    assert_close(out.loss, expected * LOGP)
    assert [float(v) for v in out.metrics["clip_high"]] == [2.0, 4.0]
    assert [float(v) for v in out.metrics["ratio"]] == pytest.approx([4.0, 4.0])


@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_oracles(seed: int) -> None:
    tokens = random_tokens(seed)
    x = tokens["logp"].requires_grad_()
    old, advantage, mask = tokens["logp_old"], tokens["advantage"], tokens["mask"]
    a = [tokens[name].detach().numpy() for name in ("logp", "logp_old", "advantage", "mask")]
    cases = [
        (O.reinforce(x, advantage, mask), oracle.reinforce(a[0], a[2], a[3])),
        (O.ppo_clip(x, old, advantage, mask), oracle.ppo_clip(*a, 0.2, 0.2)),
        (O.ppo_clip(x, old, advantage, mask, clip_low=0.1, clip_high=0.28), oracle.ppo_clip(*a, 0.1, 0.28)),
        (O.ppo_clip(x, old, advantage, mask, dual_clip=1.1), oracle.ppo_clip(*a, 0.2, 0.2, 1.1)),
        (O.ppo_clip(x, old, advantage, mask, clip_low=0.05, ratio="sequence"), oracle.gspo(*a, 0.05, 0.2)),
        (O.cispo(x, old, advantage, mask), oracle.cispo(*a, 5.0)),
        (O.cispo(x, old, advantage, mask, ratio_max=1.1), oracle.cispo(*a, 1.1)),
    ]
    for out, (loss, derivative) in cases:
        assert_close(out.loss, loss)
        assert_close(slope(out.loss, x), derivative)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_losses_derivatives(seed: int) -> None:
    tokens = random_tokens(seed)
    x, old, advantage, mask = (tokens[name] for name in ("logp", "logp_old", "advantage", "mask"))
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: O.cross_entropy(z, mask).loss, x)
    assert torch.autograd.gradcheck(lambda z: O.reinforce(z, advantage, mask).loss, x)
    assert torch.autograd.gradcheck(lambda z: O.ppo_clip(z, old, advantage, mask, dual_clip=3.0).loss, x)


def test_leave_one_out_keeps_reinforce_unbiased() -> None:
    # every pair of sequences as a group of two: 729 groups, weighted by how often they are drawn. The group's
    # own mean as baseline gives (n - 1)/n of the gradient, as it contains the completion's own reward.
    logits = world.policy(0)
    reward = world.policy(1)[:9].flatten()
    pairs = list(itertools.product(range(27), repeat=2))
    drawn = torch.tensor(pairs).flatten()
    group = torch.arange(len(pairs)).repeat_interleave(2)
    chance = torch.tensor(world.sequence_probability(logits))
    weight = (chance[drawn[::2]] * chance[drawn[1::2]]).repeat_interleave(2) / 2
    expected = world.gradient(lambda z: float(world.sequence_probability(z) @ reward), logits)
    for advantage, share in [
        (O.leave_one_out(torch.tensor(reward)[drawn], group), 1.0),
        (O.group_advantage(torch.tensor(reward)[drawn], group, scale="none"), 0.5),
    ]:
        x = torch.tensor(logits, requires_grad=True)
        tokens = x.log_softmax(dim=1)[world.ROWS, world.SEQUENCES][drawn]
        loss = O.reinforce(
            tokens, advantage[:, None].expand_as(tokens), torch.ones_like(tokens, dtype=torch.bool)
        ).loss
        assert_close(slope(weight[:, None] * loss, x), -share * expected, 1e-8)

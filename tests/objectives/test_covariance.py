"""Clip-Cov and KL-Cov: who is chosen, what the losses do, and what the covariance foretells."""

import math

import numpy as np
import pytest
import torch
from oracles import covariance as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {
    "clip_cov_tokens": [{"fraction": 0.3, "low": -10.0}],
    "kl_cov_tokens": [{"fraction": 0.3}],
    "clip_cov": [{"clip_high": 0.2}],
    "kl_cov": [{"coef": 0.1}, {"penalty": "kl"}],
}
ORDERED = {"kl_cov_tokens": "of equal covariances, such as those of two tokens, the earlier is chosen"}

NAN, INF = math.nan, math.inf

# means -3 and 0; covariances 2, 0.5, 0.25, 2.5, and a token off the mask
LOGP, ADVANTAGE = table([-1.0, -2.0, -4.0, -5.0, NAN]), table([1.0, 0.5, -0.25, -1.25, NAN])
MASK = mask_of("xxxx.")


def test_kl_cov_tokens_table() -> None:
    assert torch.equal(O.kl_cov_tokens(LOGP, ADVANTAGE, MASK, fraction=0.25), mask_of("...x."))
    assert torch.equal(O.kl_cov_tokens(LOGP, ADVANTAGE, MASK, fraction=0.26), mask_of("x..x."))
    assert torch.equal(O.kl_cov_tokens(LOGP, ADVANTAGE, MASK, fraction=0.75), mask_of("xx.x."))
    assert torch.equal(O.kl_cov_tokens(LOGP, ADVANTAGE, MASK, fraction=1), MASK)
    assert torch.equal(O.kl_cov_tokens(LOGP, ADVANTAGE, MASK), mask_of("...x."))  # ⌈0.002·4⌉ = 1
    assert not O.kl_cov_tokens(LOGP, ADVANTAGE, MASK & False, fraction=1).any()


@pytest.mark.parametrize("fraction", ["0.002", "0.07", "0.3", "1"])
@pytest.mark.parametrize("seed", range(3))
def test_kl_cov_tokens_agree_with_oracle(seed: int, fraction: str) -> None:
    tokens = random_tokens(seed)
    args = [tokens[name] for name in ("logp", "advantage", "mask")]
    expected = oracle.kl_cov_tokens(*(x.numpy() for x in args), fraction)
    assert torch.equal(O.kl_cov_tokens(*args, fraction=float(fraction)), torch.tensor(expected))
    turned = O.kl_cov_tokens(*(x.flip(0, 1) for x in args), fraction=float(fraction))
    assert torch.equal(turned.flip(0, 1), torch.tensor(expected))


def test_clip_cov_tokens_table() -> None:
    # the band decides who is eligible, the fraction how many of them
    def chosen(**settings: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return O.clip_cov_tokens(LOGP, ADVANTAGE, MASK, generator=generator, **settings)

    assert torch.equal(chosen(fraction=1), mask_of("x..x."))
    assert torch.equal(chosen(fraction=1, high=2.2), mask_of("x...."))
    assert torch.equal(chosen(fraction=1, low=0.4, high=2.2), mask_of("xx..."))
    assert torch.equal(chosen(fraction=1, low=2.0, high=2.5), mask_of("x..x."))  # both ends belong to it
    assert not chosen(fraction=1, low=3.0).any()
    assert chosen(fraction=0.25).sum() == 1  # one of four tokens, not of the two eligible
    assert chosen(fraction=0.26).sum() == 2
    assert chosen(fraction=2e-4).sum() == 1


def test_clip_cov_tokens_are_drawn_evenly() -> None:
    tokens = random_tokens(0, 8, 8)
    args = [tokens[name] for name in ("logp", "advantage", "mask")]
    values = oracle.covariance(*(x.numpy() for x in args))
    eligible = torch.zeros(8, 8, dtype=torch.bool)
    for token, value in values.items():
        eligible[token] = bool(0.0 <= value <= 1.0)
    generator = torch.Generator().manual_seed(0)
    draws, count = 2000, math.ceil(0.1 * len(values))
    hits = torch.zeros(8, 8)
    for _ in range(draws):
        chosen = O.clip_cov_tokens(*args, fraction=0.1, low=0.0, high=1.0, generator=generator)
        assert chosen.sum() == count
        hits += chosen
    assert not hits[~eligible].any()
    rate = count / int(eligible.sum())
    spread = math.sqrt(rate * (1 - rate) / draws)
    assert (hits[eligible] / draws - rate).abs().max() < 5 * spread


def test_clip_cov_tokens_follow_their_generator() -> None:
    tokens = random_tokens(0, 8, 8)
    args = [tokens[name] for name in ("logp", "advantage", "mask")]

    def chosen(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return O.clip_cov_tokens(*args, fraction=0.1, low=0.0, generator=generator)

    assert torch.equal(chosen(0), chosen(0))
    assert any(not torch.equal(chosen(0), chosen(seed)) for seed in range(1, 4))


# ratios 1.5, 1.5, 0.5, 2.5, and a token off the mask
NEW, OLD = table([0.6, 0.6, 0.2, 1.0, NAN]).log(), table([0.4, 0.4, 0.4, 0.4, NAN]).log()
GAIN = table([1.0, -1.0, 1.0, 1.0, NAN])


def test_clip_cov_table() -> None:
    # the second is dropped, and the last, of ratio 2.5, clipped at 2
    x = NEW.clone().requires_grad_()
    out = O.clip_cov(x, OLD, GAIN, MASK, dropped=mask_of(".x..x"))
    assert_close(out.loss, table([-1.5, 0.0, -0.5, -2.0, 0.0]))
    assert_close(slope(out.loss, x), table([-1.5, 0.0, -0.5, 0.0, 0.0]))
    assert [float(v) for v in out.metrics["dropped"]] == [1.0, 4.0]
    assert [float(v) for v in out.metrics["clip_high"]] == [1.0, 3.0]
    assert [float(v) for v in out.metrics["ratio"]] == pytest.approx([4.5, 3.0])


def test_kl_cov_table() -> None:
    # the first and third are penalised: log 1.5 and log 2; 1.5 - 1 - log 1.5 and 0.5 - 1 + log 2
    x, up, two = NEW.clone().requires_grad_(), math.log(1.5), math.log(2)
    chosen = mask_of("x.x.x")
    out = O.kl_cov(x, OLD, GAIN, MASK, penalised=chosen, coef=0.5)
    assert_close(out.loss, table([-1.5 + up / 2, 1.5, -0.5 + two / 2, -2.5, 0.0]))
    assert_close(slope(out.loss, x), table([-1.5 + 0.5, 1.5, -0.5 - 0.5, -2.5, 0.0]))
    assert [float(v) for v in out.metrics["penalised"]] == [2.0, 4.0]
    assert [float(v) for v in out.metrics["penalty"]] == pytest.approx([up + two, 2.0])
    assert [float(v) for v in out.metrics["ratio"]] == pytest.approx([6.0, 4.0])
    out = O.kl_cov(x, OLD, GAIN, MASK, penalised=chosen, coef=0.5, penalty="kl")
    assert_close(out.loss, table([-1.5 + (0.5 - up) / 2, 1.5, -0.5 + (two - 0.5) / 2, -2.5, 0.0]))
    assert_close(slope(out.loss, x), table([-1.5 + 0.25, 1.5, -0.5 - 0.25, -2.5, 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_oracles_and_have_their_gradients(seed: int) -> None:
    tokens = random_tokens(seed)
    x, old, advantage, mask, chosen = (
        tokens[name] for name in ("logp", "logp_old", "advantage", "mask", "chosen")
    )
    x.requires_grad_()
    a = [v.detach().numpy() for v in (x, old, advantage, mask, chosen)]

    def clip_cov(x: Tensor, low: float, high: float) -> Tensor:
        return O.clip_cov(x, old, advantage, mask, dropped=chosen, clip_low=low, clip_high=high).loss

    def kl_cov(x: Tensor, penalty: str) -> Tensor:
        return O.kl_cov(x, old, advantage, mask, penalised=chosen, coef=0.7, penalty=penalty).loss

    for low, high in [(1.0, 1.0), (0.1, 0.2)]:
        loss, derivative = oracle.clip_cov(*a, low, high)
        assert_close(clip_cov(x, low, high), loss)
        assert_close(slope(clip_cov(x, low, high), x), derivative)
        assert torch.autograd.gradcheck(clip_cov, (x, low, high))
    for penalty in ("absolute", "kl"):
        loss, derivative = oracle.kl_cov(*a, 0.7, penalty)
        assert_close(kl_cov(x, penalty), loss)
        assert_close(slope(kl_cov(x, penalty), x), derivative)
        assert torch.autograd.gradcheck(kl_cov, (x, penalty))


def test_nothing_chosen_is_plain_importance_sampling() -> None:
    tokens = random_tokens(0)
    args = [tokens[name] for name in ("logp", "logp_old", "advantage", "mask")]
    nobody = tokens["mask"] & False
    plain = O.ppo_clip(*args, clip_low=1, clip_high=INF).loss
    assert torch.equal(O.kl_cov(*args, penalised=nobody).loss, plain)
    assert torch.equal(O.clip_cov(*args, dropped=nobody, clip_high=INF).loss, plain)


@pytest.mark.parametrize("penalty", ["absolute", "kl"])
def test_the_first_step_of_an_update_is_reinforce(penalty: str) -> None:
    tokens = random_tokens(0)
    x, advantage, mask = tokens["logp"].requires_grad_(), tokens["advantage"], tokens["mask"]
    out = O.kl_cov(x, x.detach(), advantage, mask, penalised=mask, coef=9.0, penalty=penalty)
    assert_close(slope(out.loss, x), slope(O.reinforce(x, advantage, mask).loss, x))


def test_kl_is_a_kl_and_absolute_is_not() -> None:
    # over all tokens from the old policy; a hundredth from it, and ten times nearer
    zero, everywhere = torch.zeros(27, 3, dtype=torch.float64), torch.ones(27, 3, dtype=torch.bool)
    old = world.policy(0)
    prefixes, chance = world.prefix_probability(old), torch.tensor(world.sequence_probability(old))

    def mean(near: float, penalty: str) -> tuple[float, Tensor]:
        logits = torch.tensor(old + near * world.policy(1), requires_grad=True)
        logp = logits.log_softmax(dim=1)[world.ROWS, world.SEQUENCES]
        before = torch.tensor(world.token_logp(old))
        loss = O.kl_cov(logp, before, zero, everywhere, penalised=everywhere, penalty=penalty).loss
        weighted = chance[:, None] * loss
        return weighted.sum().item(), slope(weighted, logits)

    value, gradient = mean(0.5, "kl")
    policy = old + 0.5 * world.policy(1)
    assert value == pytest.approx(world.token_kl(policy, old, "forward", prefixes), abs=1e-12)
    expected = world.gradient(lambda z: world.token_kl(z, old, "forward", prefixes), policy)
    assert_close(gradient, expected, 1e-8)
    assert mean(1e-2, "kl")[0] / mean(1e-3, "kl")[0] == pytest.approx(100, rel=0.05)
    assert mean(1e-2, "absolute")[0] / mean(1e-3, "absolute")[0] == pytest.approx(10, rel=0.05)


# The law of the change of entropy -------------------------------------------------------------------


def test_predicted_entropy_change_table() -> None:
    # π = 1/2, 1/4, 1/4: log π - mean = ½log 2 on the first, -½log 2 on the others; A - E[A] = 1, -1, -1
    # natural: -Σ π·(½log 2)·1 on all three = -½log 2; plain: weighted by π once more, (¼ + 2/16)·½log 2
    logp, two = table([0.5, 0.25, 0.25]).log(), math.log(2)
    advantage = table([3.0, 1.0, 1.0])
    natural = O.predicted_entropy_change(logp, advantage, step=0.1)
    assert_close(natural, [-0.05 * two])
    plain = O.predicted_entropy_change(logp, advantage, step=0.1, gradient="plain")
    assert_close(plain, [-0.1 * 0.375 * 0.5 * two])


@pytest.mark.parametrize("gradient", ["plain", "natural"])
@pytest.mark.parametrize("actions", [3, 50])
def test_predicted_entropy_change_is_what_happens(gradient: str, actions: int) -> None:
    rng = np.random.default_rng(actions)
    logits, advantage = rng.normal(size=(2, actions))
    logp = torch.tensor(logits).log_softmax(dim=0).requires_grad_()
    predicted = O.predicted_entropy_change(logp, torch.tensor(advantage), step=1.0, gradient=gradient)
    assert not predicted.requires_grad
    errors = []
    for step in (1e-2, 1e-3):
        change = oracle.entropy_change(logits, advantage, step, gradient)
        half = O.predicted_entropy_change(logp, torch.tensor(advantage), step=step, gradient=gradient)
        assert_close(half, step * predicted.item())
        errors.append(abs(change / step - predicted.item()))
    assert errors[1] < 1e-2 * abs(predicted.item())
    assert errors[1] < 0.2 * errors[0]  # first order: the error per step shrinks with the step


def test_predicted_entropy_change_needs_no_baseline_and_minds_no_impossible_action() -> None:
    logp, advantage = table([0.5, 0.25, 0.25, 0.0]).log(), table([3.0, 1.0, 2.0, 5.0])
    for gradient in ("plain", "natural"):
        change = O.predicted_entropy_change(logp, advantage, step=0.1, gradient=gradient)
        shifted = O.predicted_entropy_change(logp, advantage - 7, step=0.1, gradient=gradient)
        assert_close(change, shifted.tolist())
        without = O.predicted_entropy_change(logp[:, :3], advantage[:, :3], step=0.1, gradient=gradient)
        assert_close(change, without.tolist())


def test_token_covariance_is_the_law_where_advantages_have_no_mean_after_a_prefix() -> None:
    # each of the 27 sequences as often as its probability says, in a batch of its own weight: the pooled
    # covariance is then an exact mean. Token advantages: any numbers, less their mean after each prefix.
    logits = world.policy(0)
    p, prefixes = world.probabilities(logits), world.prefix_probability(logits)
    advantage = world.policy(3)
    advantage = advantage - (p * advantage).sum(axis=1, keepdims=True)
    predicted = O.predicted_entropy_change(torch.tensor(p).log(), torch.tensor(advantage), step=1.0)
    law = prefixes @ predicted.numpy()
    chance = world.sequence_probability(logits)

    def pooled(values: np.ndarray) -> float:
        weight = np.repeat(chance[:, None], 3, axis=1) / 3
        logp, a = world.token_logp(logits), values
        return 3 * float((weight * (logp - (weight * logp).sum()) * (a - (weight * a).sum())).sum())

    assert -pooled(advantage[world.ROWS, world.SEQUENCES]) == pytest.approx(law, abs=1e-12)
    # one advantage for the whole sequence is not centred after each prefix: the law's number is another
    reward = world.policy(1)[:9].flatten()
    returns = np.repeat(reward[:, None], 3, axis=1)
    value = [(chance * reward * (row == world.ROWS).any(axis=1)).sum() / prefixes[row] for row in range(13)]
    q = np.zeros((13, 3))
    for row in range(13):
        for word in range(3):
            here = ((row == world.ROWS) & (word == world.SEQUENCES)).any(axis=1)
            q[row, word] = (chance * reward * here).sum() / (chance * here).sum() - value[row]
    truth = prefixes @ O.predicted_entropy_change(torch.tensor(p).log(), torch.tensor(q), step=1.0).numpy()
    assert -pooled(q[world.ROWS, world.SEQUENCES]) == pytest.approx(truth, abs=1e-12)
    assert abs(-pooled(returns) / truth - 1) > 0.05

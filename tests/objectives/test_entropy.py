"""Entropy as a loss, as a choice of tokens, as a forecast and as a fit."""

import math

import numpy as np
import pytest
import torch
from oracles import entropy as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {"entropy_loss": [{"coef": -0.1}], "high_entropy_tokens": [{"fraction": 0.3}]}

NAN = math.nan


def test_entropy_loss_table() -> None:
    # a positive coefficient minimises, a negative one is a bonus
    x = table([2.0, 0.5, NAN]).requires_grad_()
    for coef in (0.1, -0.1):
        out = O.entropy_loss(x, mask_of("xx."), coef=coef)
        assert_close(out.loss, table([2 * coef, 0.5 * coef, 0.0]))
        assert_close(slope(out.loss, x), table([coef, coef, 0.0]))


def test_entropy_loss_is_exact_token_by_token() -> None:
    policy = world.policy(0)
    logits = torch.tensor(policy, requires_grad=True)
    logp = logits.log_softmax(dim=1)
    entropy = -(logp.exp() * logp).sum(dim=1)[world.ROWS]
    loss = O.entropy_loss(entropy, torch.ones(27, 3, dtype=torch.bool), coef=0.3).loss
    gradient = slope(torch.tensor(world.sequence_probability(policy))[:, None] * loss, logits)
    prefixes = world.prefix_probability(policy)
    expected = world.gradient(lambda z: world.token_entropy(z, prefixes), policy)
    assert_close(gradient, 0.3 * expected, 1e-8)
    whole = world.gradient(lambda z: world.token_entropy(z, world.prefix_probability(z)), policy)
    assert np.linalg.norm(whole - expected) > 0.05 * np.linalg.norm(whole)  # not the sequence's


def test_high_entropy_tokens_table() -> None:
    # 5 tokens on the mask; ⌈0.2·5⌉ = 1, ⌈0.4·5⌉ = 2, ⌈0.41·5⌉ = 3. The NaN and the 9 are off it.
    entropy = table([0.1, 2.0, 0.3], [1.5, 0.2, 9.0], [NAN, NAN, NAN])
    mask = mask_of("xxx", "xx.", "...")
    assert torch.equal(O.high_entropy_tokens(entropy, mask), mask_of(".x.", "...", "..."))
    assert torch.equal(O.high_entropy_tokens(entropy, mask, fraction=0.4), mask_of(".x.", "x..", "..."))
    assert torch.equal(O.high_entropy_tokens(entropy, mask, fraction=0.41), mask_of(".xx", "x..", "..."))
    assert torch.equal(O.high_entropy_tokens(entropy, mask, fraction=1), mask)


def test_high_entropy_tokens_counts_exactly() -> None:
    # equal entropies: the earlier ones; and 0.07·100 is 7, though in floats it is a little more
    entropy, mask = torch.zeros(4, 25), torch.ones(4, 25, dtype=torch.bool)
    chosen = O.high_entropy_tokens(entropy, mask, fraction=0.07)
    assert chosen.flatten().nonzero().flatten().tolist() == list(range(7))
    assert O.high_entropy_tokens(entropy, mask, fraction=1e-12).sum() == 1
    assert O.high_entropy_tokens(entropy, mask & False, fraction=1).sum() == 0


@pytest.mark.parametrize("fraction", ["0.2", "0.5", "0.07", "0.9", "0.001"])
@pytest.mark.parametrize("seed", range(3))
def test_high_entropy_tokens_agree_with_oracle(seed: int, fraction: str) -> None:
    tokens = random_tokens(seed)
    chosen = O.high_entropy_tokens(tokens["entropy"], tokens["mask"], fraction=float(fraction))
    expected = oracle.high_entropy_tokens(tokens["entropy"].numpy(), tokens["mask"].numpy(), fraction)
    assert torch.equal(chosen, torch.tensor(expected))


def test_token_covariance_table() -> None:
    # means -1 and 1: (0.5)(1), (0)(-1.5), (-0.5)(0.5)
    logp, advantage = table([-0.5, -1.0, -1.5, NAN]), table([2.0, -0.5, 1.5, NAN])
    assert_close(O.token_covariance(logp, advantage, mask_of("xxx.")), table([0.5, 0.0, -0.25, 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_token_covariance_agrees_with_oracle(seed: int) -> None:
    tokens = random_tokens(seed)
    args = [tokens[name] for name in ("logp", "advantage", "mask")]
    assert_close(O.token_covariance(*args), oracle.token_covariance(*(x.numpy() for x in args)))
    assert not O.token_covariance(args[0].requires_grad_(), *args[1:]).requires_grad


def test_token_covariance_foretells_the_change_of_entropy() -> None:
    # ten samples that occur as often as their probabilities 0.5, 0.3, 0.2 say; logits move by η·A
    p, a, eta = table([0.5, 0.3, 0.2])[0], table([1.0, -0.5, 2.0])[0], 1e-4
    words = torch.tensor([[0] * 5 + [1] * 3 + [2] * 2])
    logp = p.log()

    def entropy(logits: Tensor) -> Tensor:
        x = logits.log_softmax(dim=0)
        return -(x.exp() * x).sum()

    change = entropy(logp + eta * a) - entropy(logp)
    mask = torch.ones(1, 10, dtype=torch.bool)
    covariance = O.token_covariance(logp[words], a[words], mask)
    assert change.item() == pytest.approx(-eta * covariance.mean().item(), rel=5e-3)


def test_fit_reward_entropy_recovers_a_law() -> None:
    # exp(H) = 1, 2, 4 and R = 0.9 - 0.1·exp(H), exactly on a line: ceiling 0.8, no uncertainty
    fit = O.fit_reward_entropy(table([1.0, 2.0, 4.0])[0].log(), table([0.8, 0.7, 0.5])[0])
    assert (fit.a, fit.b, fit.ceiling) == pytest.approx((0.1, 0.9, 0.8), abs=1e-12)
    assert_close(fit.covariance, torch.zeros(2, 2), 1e-12)


def test_fit_reward_entropy_by_hand() -> None:
    # x = 1, 2, 3; R = 1, 0, 1: slope 0, mean 2/3, residuals 1/3, -2/3, 1/3, so σ² = (6/9) / 1.
    # var(slope) = σ²/2; var(b) = σ²(1/3 + 4/2); cov(slope, b) = -σ²·2/2, and for a = -slope its negative
    fit = O.fit_reward_entropy(table([1.0, 2.0, 3.0])[0].log(), table([1.0, 0.0, 1.0])[0])
    assert (fit.a, fit.b, fit.ceiling) == pytest.approx((0.0, 2 / 3, 2 / 3), abs=1e-12)
    assert_close(fit.covariance, table([1 / 3, 2 / 3], [2 / 3, 14 / 9]))


@pytest.mark.parametrize("n", [3, 40])
def test_fit_reward_entropy_agrees_with_oracle(n: int) -> None:
    rng = np.random.default_rng(0)
    entropy = np.linspace(2, 0.2, n)
    reward = 0.8 - 0.1 * np.exp(entropy) + 0.02 * rng.normal(size=n)
    fit = O.fit_reward_entropy(torch.tensor(entropy), torch.tensor(reward))
    a, b, covariance = oracle.fit_reward_entropy(entropy, reward)
    assert (fit.a, fit.b, fit.ceiling) == pytest.approx((a, b, b - a), abs=1e-10)
    assert_close(fit.covariance, covariance, 1e-9)


def test_covariance_of_the_fit_is_the_spread_over_repetitions() -> None:
    rng = np.random.default_rng(0)
    entropy = np.linspace(1.5, 0.2, 12)
    fits = [
        O.fit_reward_entropy(torch.tensor(entropy), torch.tensor(0.8 - 0.1 * np.exp(entropy) + 0.05 * noise))
        for noise in rng.normal(size=(4000, 12))
    ]
    spread = np.cov(np.array([(fit.a, fit.b) for fit in fits]).T)
    stated = np.mean([fit.covariance.numpy() for fit in fits], axis=0)
    np.testing.assert_allclose(stated, spread, rtol=0.1)

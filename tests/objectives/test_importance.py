"""Weights for the mismatch between sampler and trainer: bounds, and what they correct exactly."""

import math

import numpy as np
import pytest
import torch
from oracles import importance as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {"importance_weight": [{"high": 1.1}, {"ratio": "sequence", "low": 0.5, "outside": "drop"}]}

NAN, INF = math.nan, math.inf

POLICY, SAMPLER = world.policy(0), world.policy(0) + 0.3 * world.policy(2)
REWARD = world.policy(1)[:9].flatten()  # of each of the 27 sequences
ALL = torch.ones(27, 3, dtype=torch.bool)


def test_importance_weight_table() -> None:
    # ratios 1.5, 4, 0.25; their product is 1.5
    old, gen = table([0.6, 0.4, 0.1, NAN]).log(), table([0.4, 0.1, 0.4, NAN]).log()
    mask = mask_of("xxx.")
    assert_close(O.importance_weight(old, gen, mask), table([1.5, 2.0, 0.25, 0.0]))
    assert_close(O.importance_weight(old, gen, mask, low=0.5, high=3), table([1.5, 3.0, 0.5, 0.0]))
    assert_close(O.importance_weight(old, gen, mask, high=INF), table([1.5, 4.0, 0.25, 0.0]))
    drop = O.importance_weight(old, gen, mask, low=0.5, outside="drop")
    assert_close(drop, table([1.5, 0.0, 0.0, 0.0]))
    whole = O.importance_weight(old, gen, mask, ratio="sequence")
    assert_close(whole, table([1.5, 1.5, 1.5, 0.0]))
    whole = O.importance_weight(old[:, 1:], gen[:, 1:], mask_of("xx."), ratio="sequence", high=1.0)
    assert_close(whole, table([1.0, 1.0, 0.0]))
    assert not O.importance_weight(old.requires_grad_(), gen, mask).requires_grad


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("outside", ["truncate", "drop"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (0.8, 1.3), (0.0, INF)])
def test_importance_weight_agrees_with_oracle(ratio: str, outside: str, low: float, high: float) -> None:
    tokens = random_tokens(1)
    old, gen, mask = (tokens[name] for name in ("logp", "logp_old", "mask"))
    weight = O.importance_weight(old, gen, mask, ratio=ratio, low=low, high=high, outside=outside)
    expected = oracle.weights(old.numpy(), gen.numpy(), mask.numpy(), ratio, low, high, outside)
    assert_close(weight, expected)
    normal = O.importance_weight(
        old, gen, mask, ratio=ratio, low=low, high=high, outside=outside, normalise=True
    )
    assert_close(normal, oracle.normalised(expected, mask.numpy(), ratio))


def test_equal_policies_weigh_one() -> None:
    tokens = random_tokens(0)
    for ratio in ("token", "sequence"):
        weight = O.importance_weight(tokens["logp"], tokens["logp"], tokens["mask"], ratio=ratio)
        assert torch.equal(weight, tokens["mask"].double())


def test_a_ratio_that_overflows_is_bounded() -> None:
    old, gen = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1001.0, -1.0]])
    assert_close(O.importance_weight(old, gen, mask_of("xx"), ratio="sequence"), [[2.0, 2.0]])
    assert_close(O.importance_weight(old, gen, mask_of("xx"), outside="drop"), [[0.0, 1.0]])


def test_normalised_weights_do_not_underflow_and_may_all_be_dropped() -> None:
    old, gen = torch.tensor([[-900.0, 0.0], [-901.0, 0.0]]), torch.zeros(2, 2)
    mask = mask_of("xx", "x.")
    weight = O.importance_weight(old, gen, mask, ratio="sequence", high=INF, normalise=True)
    share = 2 / (1 + math.exp(-1))
    assert_close(weight, [[share, share], [2 - share, 0.0]])
    dropped = O.importance_weight(old, gen, mask, ratio="sequence", low=0.5, outside="drop", normalise=True)
    assert_close(dropped, torch.zeros(2, 2))
    certain = O.importance_weight(torch.full((1, 2), -INF), gen[:1], mask_of("xx"), normalise=True)
    assert_close(certain, torch.zeros(1, 2))


def weighted_gradient(**settings: object) -> np.ndarray:
    """Mean over the sampler's sequences of the gradient of a weighted ``reinforce``, in the logits."""
    logits = torch.tensor(POLICY, requires_grad=True)
    logp = logits.log_softmax(dim=1)[world.ROWS, world.SEQUENCES]
    gen = torch.tensor(world.token_logp(SAMPLER))
    advantage = torch.tensor(REWARD)[:, None].expand(27, 3)
    weight = O.importance_weight(logp.detach(), gen, ALL, **settings)
    loss = O.reinforce(logp, advantage, ALL).loss * weight
    return slope(torch.tensor(world.sequence_probability(SAMPLER))[:, None] * loss, logits).numpy()


def test_unbounded_sequence_weights_are_exact_and_nothing_else_is() -> None:
    truth = -world.gradient(lambda z: float(world.sequence_probability(z) @ REWARD), POLICY)

    def error(**settings: object) -> float:
        return float(np.linalg.norm(weighted_gradient(**settings) - truth) / np.linalg.norm(truth))

    assert error(ratio="sequence", high=INF) < 1e-8
    assert 0.02 < error(ratio="token", high=INF) < error(ratio="token", low=1.0, high=1.0)  # unweighted
    assert error(ratio="sequence", high=1.1) > 0.02
    # the first token has no prefix, but what follows it comes from the sampler: only the last is exact there
    last = np.unique(world.ROWS[:, 2])
    sampler_prefixes = world.prefix_probability(SAMPLER) / world.prefix_probability(POLICY)
    np.testing.assert_allclose(
        weighted_gradient(ratio="token", high=INF)[last] / sampler_prefixes[last, None],
        truth[last],
        atol=1e-8,
    )


def test_mean_weight_is_one_until_it_is_truncated() -> None:
    old, gen = torch.tensor(world.token_logp(POLICY)), torch.tensor(world.token_logp(SAMPLER))
    chance = torch.tensor(world.sequence_probability(SAMPLER))

    def mean(**settings: object) -> Tensor:
        return chance @ O.importance_weight(old, gen, ALL, **settings)

    assert_close(mean(high=INF), [1.0] * 3)
    assert_close(mean(high=INF, ratio="sequence"), [1.0] * 3)
    assert (mean(high=1.1)[1:] < 0.97).all()

"""Trust regions: DPPO, DRPO, CE-GPPO, and that the exact distance sees all that the sampled token sees."""

# ruff: noqa: E501 - the table of mutants is read across, one a line

import math

import numpy as np
import pytest
import torch
from oracles import trust as oracle
from oracles import world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, mask_of, random_tokens, slope, table

CASES = {
    "dppo": [{}, {"threshold": 0.02, "ratio_max": 1.1}],
    "drpo": [{}, {"threshold": 0.05, "ratio_max": 1.1}],
    "ce_gppo": [{}, {"clip_low": 0.05, "clip_high": 0.05, "keep_low": 0.5, "keep_high": 0.3}],
}

NAN = math.nan

# |p - q| is 0.3, 0.3, 0.3, 0.3 and 0.1; the ratios 1.6, 1.6, 0.4, 0.4, 3; the last is off the mask
LOGP = table([0.8, 0.8, 0.2, 0.2, 0.15, 1.0]).log()
LOGP_GEN = table([0.5, 0.5, 0.5, 0.5, 0.05, 1.0]).log()
ADVANTAGE = table([1.0, -1.0, 2.0, -2.0, 1.0, 9.0])
MASK = mask_of("xxxxx.")
ALL = torch.ones(27, 3, dtype=torch.bool)


def push(function: object, **settings: object) -> Tensor:
    """-dloss/dlogp at the table's tokens."""
    x = LOGP.clone().requires_grad_()
    return -slope(function(x, LOGP_GEN, ADVANTAGE, MASK, **settings).loss, x)


def test_dppo_table() -> None:
    # the first and the fourth went where their advantage sends them, by more than 0.2
    assert_close(push(O.dppo), table([0.0, -1.6, 0.8, 0.0, 3.0, 0.0]))
    assert_close(push(O.dppo, threshold=0.31), table([1.6, -1.6, 0.8, -0.8, 3.0, 0.0]))
    assert_close(push(O.dppo, threshold=0.05), table([0.0, -1.6, 0.8, 0.0, 0.0, 0.0]))
    assert_close(push(O.dppo, ratio_max=1.5), table([0.0, -1.5, 0.8, 0.0, 1.5, 0.0]))
    out = O.dppo(LOGP, LOGP_GEN, ADVANTAGE, MASK)
    assert_close(out.loss, -table([0.0, -1.6, 0.8, 0.0, 3.0, 0.0]) * LOGP)
    assert {k: [float(x) for x in v] for k, v in out.metrics.items()} == {
        "ratio": pytest.approx([1.6 + 1.6 + 0.4 + 0.4 + 3.0, 5.0]),
        "distance": pytest.approx([1.3, 5.0]),
        "clip_low": [1.0, 5.0],
        "clip_high": [1.0, 5.0],
    }


def test_dppo_of_an_exact_distance() -> None:
    # the distance decides how far, the sampled token which way
    distance = table([0.1, 0.9, 0.9, 0.9, 0.3, NAN])
    assert_close(push(O.dppo, distance=distance), table([1.6, -1.6, 0.8, 0.0, 0.0, 0.0]))
    at_sampler = O.dppo(LOGP_GEN, LOGP_GEN, ADVANTAGE, MASK, distance=distance)
    assert float(at_sampler.metrics["clip_high"][0]) == float(at_sampler.metrics["clip_low"][0]) == 0


def test_drpo_table() -> None:
    # factors 1 - 1.5, 1 + 1.5, 1 + 1.5, 1 - 1.5, 1 - 0.5
    assert_close(push(O.drpo), table([-0.8, -4.0, 2.0, 0.4, 1.5, 0.0]))
    assert_close(push(O.drpo, threshold=0.6), table([0.8, -2.4, 1.2, -0.4, 3 * 5 / 6, 0.0]))
    assert_close(push(O.drpo, ratio_max=1.5), table([-0.75, -3.75, 2.0, 0.4, 0.75, 0.0]))
    distance = table([0.2, 0.1, 0.4, 0.0, 0.3, NAN])
    assert_close(push(O.drpo, distance=distance), table([0.0, -2.4, 2.4, -0.8, -1.5, 0.0]))
    metrics = O.drpo(LOGP, LOGP_GEN, ADVANTAGE, MASK).metrics
    assert [float(x) for x in metrics["turned"]] == [2.0, 5.0]
    assert [float(x) for x in metrics["distance"]] == pytest.approx([1.3, 5.0])


def test_drpo_knows_no_side_where_nothing_moved() -> None:
    # a distance without a direction, as where the others moved and this token did not, and no inf·0
    distance = torch.full_like(LOGP, math.inf)
    x = LOGP_GEN.clone().requires_grad_()
    out = O.drpo(x, LOGP_GEN, ADVANTAGE, MASK, distance=distance)
    assert_close(-slope(out.loss, x), torch.where(MASK, ADVANTAGE, 0.0))


def test_ce_gppo_table() -> None:
    # ratios 1.5, 1.5, 0.5, 0.5 against 0.8 and 1.28: the first and the fourth are past their bounds
    x = table([0.6, 0.6, 0.2, 0.2, 1.0]).log().requires_grad_()
    old, advantage = table([0.4] * 5).log(), table([1.0, -1.0, 2.0, -2.0, NAN])
    out = O.ce_gppo(x, old, advantage, mask_of("xxxx."))
    expected = table([-1.28, 1.5, -1.0, 2 * 0.75 * 0.8, 0.0])
    assert_close(out.loss, expected)
    assert_close(slope(out.loss, x), expected)
    out = O.ce_gppo(x, old, advantage, mask_of("xxxx."), clip_low=0.3, keep_low=0.5, keep_high=0.25)
    assert_close(slope(out.loss, x), table([-0.32, 1.5, -1.0, 0.7, 0.0]))
    assert [float(v) for v in out.metrics["clip_low"]] == [1.0, 4.0]
    assert [float(v) for v in out.metrics["clip_high"]] == [1.0, 4.0]
    assert [float(v) for v in out.metrics["ratio"]] == pytest.approx([4.0, 4.0])


def test_ce_gppo_that_keeps_nothing_is_ppo_clip() -> None:
    tokens = random_tokens(5)
    x, old, advantage, mask = (tokens[name] for name in ("logp", "logp_old", "advantage", "mask"))
    x.requires_grad_()
    bounds = {"clip_low": 0.1, "clip_high": 0.15}
    out = O.ce_gppo(x, old, advantage, mask, **bounds, keep_low=0, keep_high=0)
    assert_close(slope(out.loss, x), slope(O.ppo_clip(x, old, advantage, mask, **bounds).loss, x))
    assert 0 < float(out.metrics["clip_low"][0] + out.metrics["clip_high"][0]) < float(mask.sum())


def test_a_ratio_that_overflows() -> None:
    x = torch.tensor([[-1.0, -1.0]], requires_grad=True)
    gen = torch.tensor([[-1001.0, -1.0]])
    for advantage, pushed in ((1.0, 20.0), (0.0, 0.0)):
        out = O.dppo(x, gen, torch.tensor([[advantage, 0.0]]), mask_of("xx"), threshold=1)
        assert_close(-slope(out.loss, x), [[pushed, 0.0]], 1e-6)
    for advantage, pushed in ((1.0, 1.28), (0.0, 0.0)):
        out = O.ce_gppo(x, gen, torch.tensor([[advantage, 0.0]]), mask_of("xx"))
        assert_close(-slope(out.loss, x), [[pushed, 0.0]], 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_oracles(seed: int) -> None:
    tokens = random_tokens(seed)
    x = tokens["logp"].requires_grad_()
    old, advantage, mask = tokens["logp_old"], tokens["advantage"], tokens["mask"]
    distance = tokens["weight"] / 2
    a = [tokens[name].detach().numpy() for name in ("logp", "logp_old", "advantage", "mask")]
    d = distance.numpy()
    cases = [
        (O.dppo(x, old, advantage, mask), oracle.dppo(*a, None, 0.2, 20.0)),
        (O.dppo(x, old, advantage, mask, threshold=0.03), oracle.dppo(*a, None, 0.03, 20.0)),
        (O.dppo(x, old, advantage, mask, distance=distance, ratio_max=1.1), oracle.dppo(*a, d, 0.2, 1.1)),
        (O.drpo(x, old, advantage, mask), oracle.drpo(*a, None, 0.2, 20.0)),
        (O.drpo(x, old, advantage, mask, threshold=0.03, ratio_max=1.1), oracle.drpo(*a, None, 0.03, 1.1)),
        (O.drpo(x, old, advantage, mask, distance=distance), oracle.drpo(*a, d, 0.2, 20.0)),
        (O.ce_gppo(x, old, advantage, mask), oracle.ce_gppo(*a, 0.2, 0.28, 0.75, 1.0)),
        (O.ce_gppo(x, old, advantage, mask, clip_low=0.05), oracle.ce_gppo(*a, 0.05, 0.28, 0.75, 1.0)),
        (
            O.ce_gppo(x, old, advantage, mask, clip_high=0.1, keep_high=0.2, keep_low=2.0),
            oracle.ce_gppo(*a, 0.2, 0.1, 2.0, 0.2),
        ),
    ]
    for out, pushed in cases:
        assert_close(-slope(out.loss, x), pushed)
        assert not out.loss.detach()[~mask].any()


def test_drpo_is_the_derivative_of_the_papers_loss() -> None:
    for i in range(5):
        logp, gen, advantage = (float(v[0, i]) for v in (LOGP, LOGP_GEN, ADVANTAGE))
        h = 1e-5
        up, down = (oracle.drpo_value(logp + s * h, gen, advantage, 0.2) for s in (1, -1))
        assert float(push(O.drpo)[0, i]) == pytest.approx(-(up - down) / (2 * h), rel=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_ce_gppo_has_the_slope_of_its_value_where_nothing_is_kept_past_a_bound(seed: int) -> None:
    tokens = random_tokens(seed)
    x, old, advantage, mask = (tokens[name] for name in ("logp", "logp_old", "advantage", "mask"))

    def loss(z: Tensor) -> Tensor:
        return O.ce_gppo(z, old, advantage, mask, clip_low=1.0, clip_high=1e6).loss

    h = 1e-6  # the weight is stopped, so the slope of the value is taken by hand
    numeric = (loss(x + h) - loss(x - h)) / (2 * h)
    assert_close(slope(loss(x.requires_grad_()), x), numeric, 1e-6)


POLICY, SAMPLER = world.policy(0), world.policy(0) + 0.4 * world.policy(2)
REWARD = np.random.default_rng(5).normal(size=(13, 3))  # of each word after each prefix


def mean_push(function: object, **settings: object) -> Tensor:
    """Gradient in the policy's logits of the mean, over the sampler's sequences, of minus the loss."""
    logits = torch.tensor(POLICY, requires_grad=True)
    logp = logits.log_softmax(dim=1)[world.ROWS, world.SEQUENCES]
    advantage = torch.tensor(REWARD[world.ROWS, world.SEQUENCES])
    loss = function(logp, torch.tensor(world.token_logp(SAMPLER)), advantage, ALL, **settings).loss
    return -slope(torch.tensor(world.sequence_probability(SAMPLER)) @ loss.sum(dim=1), logits)


def test_dppo_without_bounds_follows_the_expected_advantage_at_each_prefix() -> None:
    prefixes = world.prefix_probability(SAMPLER)
    truth = world.gradient(lambda z: float(prefixes @ (world.probabilities(z) * REWARD).sum(axis=1)), POLICY)
    assert_close(mean_push(O.dppo, threshold=math.inf, ratio_max=math.inf), truth, 1e-8)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 12.5])
def test_drpo_follows_the_advantage_minus_a_weighted_square_of_the_probabilities(threshold: float) -> None:
    prefixes, q = world.prefix_probability(SAMPLER), world.probabilities(SAMPLER)

    def objective(logits: np.ndarray) -> float:
        p = world.probabilities(logits)
        held = np.abs(REWARD) * (p - q) ** 2 / (2 * threshold)
        return float(prefixes @ (p * REWARD - held).sum(axis=1))

    truth = world.gradient(objective, POLICY)
    assert_close(mean_push(O.drpo, threshold=threshold, ratio_max=math.inf), truth, 1e-8)


def test_total_variation_is_never_below_the_sampled_difference() -> None:
    # so that the exact trust region drops every token that the sampled one drops, and more
    p, q = world.probabilities(POLICY), world.probabilities(SAMPLER)
    variation = torch.tensor(np.abs(p - q).sum(axis=1) / 2)[torch.tensor(world.ROWS)]
    logp, gen = torch.tensor(world.token_logp(POLICY)), torch.tensor(world.token_logp(SAMPLER))
    assert ((logp.exp() - gen.exp()).abs() <= variation + 1e-12).all()
    advantage = torch.tensor(REWARD[world.ROWS, world.SEQUENCES])
    more = 0
    for threshold in (0.02, 0.05, 0.1):
        x = logp.clone().requires_grad_()
        sampled = slope(O.dppo(x, gen, advantage, ALL, threshold=threshold).loss, x) == 0
        exact = slope(O.dppo(x, gen, advantage, ALL, distance=variation, threshold=threshold).loss, x) == 0
        assert (exact | ~sampled).all()
        more += int((exact & ~sampled).sum())
    assert more > 0


X = torch.zeros(2, 3)
ONES = torch.ones(2, 3, dtype=torch.bool)
REFUSED = [
    (
        lambda: O.dppo(X, X, X, ONES, threshold=-0.1),
        ValueError,
        "threshold is -0.1, expected a number in [0, inf",
    ),
    (
        lambda: O.dppo(X, X, X, ONES, ratio_max=0.5),
        ValueError,
        "ratio_max is 0.5, expected a number in [1, inf",
    ),
    (lambda: O.dppo(X, X, X, ONES, distance=X[:1]), ValueError, "distance has shape [1, 3]"),
    (lambda: O.dppo(X, X, X, ONES, distance=ONES), TypeError, "distance has dtype torch.bool"),
    (lambda: O.drpo(X, X, X, ONES, threshold=0), ValueError, "threshold is 0, expected a number in (0, inf"),
    (
        lambda: O.ce_gppo(X, X, X, ONES, clip_low=1.5),
        ValueError,
        "clip_low is 1.5, expected a number in [0, 1]",
    ),
    (
        lambda: O.ce_gppo(X, X, X, ONES, keep_low=-1),
        ValueError,
        "keep_low is -1, expected a number in [0, inf)",
    ),
    (lambda: O.ce_gppo(X, X, X, ONES, clip_high=math.inf), ValueError, "clip_high is inf"),
]

MUTANTS = [
    Mutant("dppo: drops what comes back", "trust.py", "dropped = (measure > threshold) & (away > 0)", "dropped = (measure > threshold) & (away < 0)", test_dppo_table),
    Mutant("dppo: drops either way", "trust.py", "dropped = (measure > threshold) & (away > 0)", "dropped = measure > threshold", test_dppo_table),
    Mutant("dppo: keeps the far ones", "trust.py", "dropped = (measure > threshold)", "dropped = (measure < threshold)", test_dppo_table),
    Mutant("dppo: no bound", "trust.py", "torch.where(dropped, 0.0, ratio.clamp(max=ratio_max))", "torch.where(dropped, 0.0, ratio)", test_dppo_table),
    Mutant("dppo: flipped sign of A", "trust.py", "-weight * advantage * logp,", "weight * advantage * logp,", test_dppo_table),
    Mutant("dppo: counts the dropped twice", "trust.py", '"clip_low": metric(dropped & (advantage < 0), mask),\n            "clip_high"', '"clip_low": metric(dropped, mask),\n            "clip_high"', test_dppo_table),
    Mutant("the ratio upside down", "trust.py", "(logp.detach() - logp_gen).exp(), advantage", "(logp_gen - logp.detach()).exp(), advantage", test_dppo_table),
    Mutant("log-probabilities for probabilities", "trust.py", "moved = logp.detach().exp() - logp_gen.exp()", "moved = logp.detach() - logp_gen", test_dppo_table),
    Mutant("the distance not looked at", "trust.py", "measure = moved.abs() if distance is None else on_mask(mask, distance.detach())[0]", "measure = moved.abs()", test_dppo_of_an_exact_distance),
    Mutant("drpo: away is pushed", "trust.py", "1 - away.sign() * measure / threshold", "1 + away.sign() * measure / threshold", test_drpo_table),
    Mutant("drpo: no side", "trust.py", "1 - away.sign() * measure / threshold", "1 - measure / threshold", test_drpo_table),
    Mutant("drpo: threshold squared", "trust.py", "measure / threshold)", "measure / threshold**2)", test_drpo_is_the_derivative_of_the_papers_loss),
    Mutant("drpo: by the advantage's size", "trust.py", "1 - away.sign() * measure", "1 - away * measure", test_drpo_table),
    Mutant("drpo: 0 times inf", "trust.py", "torch.where(away == 0, 1.0, 1 - away.sign() * measure / threshold)", "1 - away.sign() * measure / threshold", test_drpo_knows_no_side_where_nothing_moved),
    Mutant("drpo: no bound", "trust.py", "-ratio.clamp(max=ratio_max) * factor", "-ratio * factor", test_drpo_table),
    Mutant("ce_gppo: shares swapped", "trust.py", "torch.where(low, keep_low * (1 - clip_low), ratio)", "torch.where(low, keep_high * (1 - clip_low), ratio)", test_ce_gppo_table),
    Mutant("ce_gppo: bound not in the weight", "trust.py", "keep_high * (1 + clip_high), weight)", "keep_high, weight)", test_ce_gppo_table),
    Mutant("ce_gppo: the clipped side of the other sign", "trust.py", "high = (advantage > 0) & (ratio", "high = (advantage < 0) & (ratio", test_ce_gppo_table),
    Mutant("ce_gppo: inf times 0", "trust.py", "torch.where(advantage == 0, 0.0, -weight * advantage)", "-weight * advantage", test_a_ratio_that_overflows),
    Mutant("ce_gppo: dropped", "trust.py", "keep_low * (1 - clip_low), ratio)", "0.0, ratio)", test_ce_gppo_table),
]  # fmt: skip

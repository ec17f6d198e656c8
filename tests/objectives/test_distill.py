"""Distillation from sampled tokens: the mean gradient of the reverse KL, and what the exact baseline takes away."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import distill as oracle
from oracles import kl, world
from torch import Tensor

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, mask_of, slope, table

CASES = {"sampled_distill": [{}, {"coef": 0.3, "baseline": "none"}]}

POLICY, TARGET, SAMPLER = world.policy(0), world.policy(1), world.policy(0) + 0.4 * world.policy(2)
ALL = torch.ones(27, 3, dtype=torch.bool)


def divergences(policy: np.ndarray) -> np.ndarray:
    """KL(policy ‖ target) after each of the 13 prefixes."""
    rows = zip(world.probabilities(policy), world.probabilities(TARGET), strict=True)
    return np.array([kl.categorical(p, t) for p, t in rows])


def mean_gradient(baseline: str, sampler: np.ndarray = POLICY) -> Tensor:
    """Mean over the sampler's sequences, each token weighted by policy/sampler; in the policy's logits."""
    logits = torch.tensor(POLICY, requires_grad=True)
    logp = logits.log_softmax(dim=1)[world.ROWS, world.SEQUENCES]
    exact = torch.tensor(divergences(POLICY)[world.ROWS])
    target = torch.tensor(world.token_logp(TARGET))
    out = O.sampled_distill(logp, logp.detach(), target, exact, ALL, baseline=baseline)
    weight = (logp.detach() - torch.tensor(world.token_logp(sampler))).exp()
    return slope(torch.tensor(world.sequence_probability(sampler))[:, None] * weight * out.loss, logits)


@pytest.mark.parametrize("sampler", [POLICY, SAMPLER], ids=["on-policy", "weighted"])
@pytest.mark.parametrize("baseline", ["exact", "none"])
def test_its_mean_gradient_is_that_of_the_reverse_kl_at_each_prefix(baseline, sampler) -> None:
    prefixes = world.prefix_probability(sampler)
    expected = world.gradient(lambda z: world.token_kl(z, TARGET, "reverse", prefixes), POLICY)
    assert_close(mean_gradient(baseline, sampler), expected, 1e-8)


@pytest.mark.parametrize(("distance", "share"), [(0.3, 0.98), (1.0, 0.80), (3.0, 0.35)])
def test_the_exact_baseline_takes_the_more_variance_away_the_further_the_target_is(distance, share) -> None:
    generator = np.random.default_rng(0)
    with_it, without = 0.0, 0.0
    for _ in range(40):
        logits = generator.normal(size=300)
        moved = logits + distance * generator.normal(size=300)
        p, t = (np.exp(z) / np.exp(z).sum() for z in (logits, moved))
        with_it += oracle.gradient_variance(p, t, kl.categorical(p, t))
        without += oracle.gradient_variance(p, t, 0.0)
    assert with_it / without == pytest.approx(share, abs=0.02)


def test_it_may_add_variance_where_one_token_has_most_of_the_probability() -> None:
    """That token's log-ratio is near 0 and its score small, so that a baseline of 0 is nearer to the best one."""
    p, t = np.array([0.9, 0.05, 0.05]), np.array([0.96, 0.02, 0.02])
    mean = kl.categorical(p, t)
    best = minimise(lambda b: oracle.gradient_variance(p, t, b))
    assert oracle.gradient_variance(p, t, mean) > 1.02 * oracle.gradient_variance(p, t, best)
    rows = list(
        zip(world.probabilities(POLICY), world.probabilities(TARGET), divergences(POLICY), strict=True)
    )
    more = [oracle.gradient_variance(p, t, m) > oracle.gradient_variance(p, t, 0.0) for p, t, m in rows]
    assert 0 < sum(more) < len(more)


def minimise(function: Callable[[float], float]) -> float:
    """Where a parabola is smallest, from three of its points."""
    low, middle, high = function(-1.0), function(0.0), function(1.0)
    return (low - high) / (2 * (low + high - 2 * middle))


def test_hand_table() -> None:
    # probabilities 1/2, 1/2, 1/4 now; 1/4, 1/2, 1/2 then; the target's 1/2, 1/8, 1/2; the mean log 2
    now, then, target = table([0.5, 0.5, 0.25]), table([0.25, 0.5, 0.5]), table([0.5, 0.125, 0.5])
    mean, mask = torch.full((1, 3), float(np.log(2)), dtype=torch.float64), mask_of("xxx")
    logp = now.log().requires_grad_()
    two = float(np.log(2))
    for baseline, expected in (("exact", [-4 * two, two, -two / 2]), ("none", [-2 * two, 2 * two, 0.0])):
        out = O.sampled_distill(logp, then.log(), target.log(), mean, mask, coef=1.0, baseline=baseline)
        assert_close(slope(out.loss, logp), table(expected))
        by_hand = [
            oracle.slope(*each, two, baseline)
            for each in zip(*(x.flatten().tolist() for x in (now, then, target)), strict=True)
        ]
        assert_close(slope(out.loss, logp).flatten(), by_hand)
    total, count = out.metrics["sampled_kl"]
    assert float(total / count) == pytest.approx((-two + 2 * two + 0.0) / 3)
    total, count = out.metrics["reverse_kl"]
    assert float(total / count) == pytest.approx(two)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    logp, old, target, mean = -torch.rand(4, 2, 3, generator=generator, dtype=torch.float64) - 0.1
    mask = mask_of("xx.", "xxx")

    def loss(x: Tensor) -> Tensor:
        return O.sampled_distill(x, old, target, -mean, mask, coef=0.3).loss

    assert torch.autograd.gradcheck(loss, (logp.requires_grad_(),))


REFUSED = [
    (
        lambda: O.sampled_distill(*[table([-1.0])] * 4, mask_of("x"), baseline="mean"),
        ValueError,
        "baseline is 'mean'",
    ),
]

MUTANTS = [
    Mutant(
        "the baseline added",
        "distill.py",
        "mean - log_ratio if",
        "-mean - log_ratio if",
        test_hand_table,
    ),
    Mutant(
        "the ratio forgotten",
        "distill.py",
        "(logp - old).exp()",
        "(logp - logp.detach()).exp()",
        test_hand_table,
    ),
    Mutant(
        "the log-ratio turned round",
        "distill.py",
        "log_ratio = old - target",
        "log_ratio = target - old",
        lambda: test_its_mean_gradient_is_that_of_the_reverse_kl_at_each_prefix("exact", POLICY),
    ),
]

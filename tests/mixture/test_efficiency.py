"""How efficient a sampling distribution is, by tables and by counting."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracles import mixture as oracle
from torch import Tensor

from klent import mixture as M


def world(seed: int, size: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, size, generator=generator, dtype=torch.float64)
    reward = torch.randn(size, generator=generator, dtype=torch.float64)
    return logits[0].softmax(-1), logits[1].softmax(-1), logits[2].softmax(-1), reward


@pytest.mark.parametrize("seed", range(5))
def test_snr_is_the_oracles(seed: int) -> None:
    policy, target, q, reward = world(seed)
    expected = oracle.snr(*(x.numpy() for x in (policy, target, q, reward)))
    assert abs(M.progress_terms(policy, target, q, reward).snr.item()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_terms_are_the_first_two_derivatives_of_progress(seed: int) -> None:
    policy, target, q, reward = world(seed)
    terms = M.progress_terms(policy, target, q, reward)
    eta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = M.progress(policy, target, q, reward, eta)  # type: ignore[arg-type]
    assert value.item() == pytest.approx(0, abs=1e-14)
    (first,) = torch.autograd.grad(value, eta, create_graph=True)
    (second,) = torch.autograd.grad(first, eta)
    assert first.item() == pytest.approx(terms.signal.item(), rel=1e-10)
    assert -second.item() == pytest.approx(terms.curvature.item(), rel=1e-10)
    assert terms.best_step.item() == pytest.approx(first.item() / -second.item())


def test_progress_is_the_change_of_cross_entropy() -> None:
    policy, target, q, reward = world(1)
    after = (policy.log() + 0.3 * policy / q * reward).log_softmax(-1)
    expected = (target * (after - policy.log())).sum()
    torch.testing.assert_close(M.progress(policy, target, q, reward, 0.3), expected)


@pytest.mark.parametrize("seed", range(5))
def test_chi_squared_bounds_snr_and_is_attained(seed: int) -> None:
    policy, target, q, reward = world(seed)
    bound = M.chi_squared(target, policy).item()
    assert bound == pytest.approx(float(np.sum(target.numpy() ** 2 / policy.numpy()) - 1))
    assert M.progress_terms(policy, target, q, reward).snr.item() ** 2 <= bound
    best = M.snr_optimal(policy, target)
    log_ratio = (target / policy).log()
    attained = M.progress_terms(policy, target, best / best.sum(), log_ratio).snr.item() ** 2
    assert attained == pytest.approx(bound, rel=1e-9)


def test_snr_optimal_is_smooth_where_both_agree() -> None:
    policy = torch.full((3,), 1 / 3, dtype=torch.float64)
    target = policy * torch.tensor([1.0, 1 + 1e-6, 1 + 1e-3], dtype=torch.float64)
    expected = policy * torch.tensor([1.0, 1 - 0.5e-6, math.log(1.001) / 0.001], dtype=torch.float64)
    torch.testing.assert_close(M.snr_optimal(policy, target), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_sampling_variance_over_every_pair_of_samples(seed: int) -> None:
    policy, _, q, _ = world(seed, size=4)
    field = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mean = (policy[:, None] * field).sum(0)
    total = 0.0
    for i, j in itertools.product(range(4), repeat=2):
        estimate = (policy[i] / q[i] * field[i] + policy[j] / q[j] * field[j]) / 2
        total += float(q[i] * q[j] * (estimate - mean).square().sum())
    assert M.sampling_variance(policy, q, field).item() / 2 == pytest.approx(total, rel=1e-10)
    best = M.variance_optimal(policy, field)
    least = M.sampling_variance(policy, best, field)
    for other in (policy, q, 0.9 * best + 0.1 * q):
        assert M.sampling_variance(policy, other, field) > least


def test_what_is_never_sampled_and_matters_has_no_variance() -> None:
    policy, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert M.sampling_variance(policy, q, torch.tensor([[1.0], [1.0]])).item() == math.inf
    assert M.sampling_variance(policy, q, torch.tensor([[1.0], [0.0]])).item() == 0
    assert M.chi_squared(policy, q).item() == math.inf
    assert M.chi_squared(q, policy).item() == 1
    assert M.variance_optimal(policy, torch.zeros(2, 1)).tolist() == [0.5, 0.5]

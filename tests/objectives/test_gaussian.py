"""Gaussians: densities and divergences against numerical integration and published equations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gaussian as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, slope, table

law = settings(max_examples=15, deadline=None)


def gaussians(seed: int, rows: int = 3, size: int = 4) -> list[Tensor]:
    """Two means and two deviations, ``[rows, size]``: mean, std, mean, std."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(4, rows, size, generator=generator, dtype=torch.float64)
    return [draws[0], (draws[1] / 2).exp(), draws[2], (draws[3] / 2).exp()]


def test_gaussian_kl_table() -> None:
    # equal deviations 2: (3² + 4²)/(2·4); widths 1 and 2: log 2 + 1/8 - 1/2 a coordinate; both together
    mean, zero = table([3.0, 4.0]), torch.zeros(1, 2, dtype=torch.float64)
    one, two = table([1.0]), table([2.0])
    width = math.log(2) + 1 / 8 - 1 / 2
    assert_close(O.gaussian_kl(mean, two, zero, two), [25 / 8])
    assert_close(O.gaussian_kl(zero, one, zero, two), [2 * width])
    assert_close(O.gaussian_kl(mean, one, zero, two), [2 * width + 25 / 8])
    assert_close(O.gaussian_kl(mean, table([1.0, 2.0]), zero, two), [width + 25 / 8])  # diagonal
    assert O.gaussian_kl(mean, two, mean, two).tolist() == [0.0]


def test_gaussian_logp_table() -> None:
    # one σ off in the second coordinate, of deviation 2
    x, mean, std = table([0.0, 3.0]), table([0.0, 1.0]), table([1.0, 2.0])
    assert_close(O.gaussian_logp(x, mean, std), [-math.log(2 * math.pi) - math.log(2) - 0.5])


@pytest.mark.parametrize("seed", range(3))
def test_gaussians_agree_with_numerical_integration(seed: int) -> None:
    arrays = [x.numpy() for x in gaussians(seed)]
    kl = O.gaussian_kl(*gaussians(seed))
    assert_close(kl, [oracle.kl(*(x[i] for x in arrays)) for i in range(3)], 1e-10)
    mean, std, sample, _ = gaussians(seed)
    expected = [oracle.logp(sample[i].numpy(), mean[i].numpy(), std[i].numpy()) for i in range(3)]
    assert_close(O.gaussian_logp(sample, mean, std), expected)


def test_gaussians_have_their_gradients() -> None:
    inputs = tuple(x.requires_grad_() for x in gaussians(0))
    assert torch.autograd.gradcheck(O.gaussian_kl, inputs)
    mean, std, sample, _ = inputs
    assert torch.autograd.gradcheck(O.gaussian_logp, (sample, mean, std))
    assert torch.autograd.gradcheck(lambda m, s: O.gaussian_logp(sample.detach(), m, s), (mean, std[:, :1]))


@pytest.mark.parametrize("size", [1, 5])
def test_equations_38_to_44(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    mean, ref = torch.randn(2, 1, size, generator=generator, dtype=torch.float64)
    mean.requires_grad_()
    for std_1, std_2 in [(0.7, 1.3), (1.3, 0.7), (0.9, 0.9)]:
        kl = O.gaussian_kl(mean, table([std_1]), ref, table([std_2]))
        a, b = mean.detach().numpy()[0], ref.numpy()[0]
        assert_close(kl, [oracle.equation_38(a, std_1, b, std_2)])
        assert_close(slope(kl, mean), [oracle.equation_44(a, b, std_2)])
    # equation 39: equal deviations leave the distance alone, and a half of its square
    assert_close(kl, (mean.detach() - ref).square().sum(dim=1) / (2 * 0.9**2))


def test_kl_is_the_mean_log_ratio() -> None:
    # of gaussian_logp, at the nodes of the quadrature, for one coordinate
    mean_p, std_p, mean_q, std_q = (x[:1, :1] for x in gaussians(1))
    x = mean_p + std_p * torch.tensor(oracle.NODES)[:, None]
    ratio = O.gaussian_logp(x, mean_p, std_p) - O.gaussian_logp(x, mean_q, std_q)
    assert_close(O.gaussian_kl(mean_p, std_p, mean_q, std_q), [oracle.WEIGHTS @ ratio.numpy()], 1e-10)


def test_kl_keeps_its_digits_near_zero() -> None:
    # deviations 1e-7 apart in float64: KL is 1e-14, of which a difference of numbers near 1 keeps two digits
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    kl = O.gaussian_kl(zero, one * (1 + 1e-7), zero, one)
    assert kl.item() == pytest.approx(1e-14, rel=1e-5, abs=0)


@law
@given(seed=st.integers(0, 10**6), shift=st.floats(-3, 3), scale=st.floats(0.1, 10))
def test_kl_is_nonnegative_and_knows_no_unit_or_origin(seed: int, shift: float, scale: float) -> None:
    mean_p, std_p, mean_q, std_q = gaussians(seed)
    kl = O.gaussian_kl(mean_p, std_p, mean_q, std_q)
    assert (kl >= 0).all()
    moved = O.gaussian_kl(scale * mean_p + shift, scale * std_p, scale * mean_q + shift, scale * std_q)
    assert_close(moved, kl, 1e-9)
    parts = [O.gaussian_kl(*(x[:, i : i + 1] for x in (mean_p, std_p, mean_q, std_q))) for i in range(4)]
    assert_close(sum(parts, torch.zeros(3)), kl)  # independent coordinates add up


def test_kl_of_a_ddpm_step_in_its_noise() -> None:
    # μ = (x - β/√(1-ᾱ)·ε)/√α with α = 1 - β
    generator = torch.Generator().manual_seed(0)
    state, noise, noise_ref = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    beta, total, std = 0.02, 0.6, 0.11
    mean, ref = ((state - beta / math.sqrt(1 - total) * e) / math.sqrt(1 - beta) for e in (noise, noise_ref))
    kl = O.gaussian_kl(mean, table([std]), ref, table([std]))
    weight = beta**2 / (2 * std**2 * (1 - beta) * (1 - total))
    assert_close(kl, weight * (noise - noise_ref).square().sum(dim=1))


def test_kl_of_a_trajectory_bounds_that_of_its_end() -> None:
    # x1 ~ N(a, s²), x0 ~ N(x1 + b, t²): the end is N(a + b, s² + t²), so its KL has one distance over both
    s, t, a, b = table([0.8]), table([0.6]), table([0.9]), table([-0.3])
    zero = torch.zeros_like(a)
    path = O.gaussian_kl(a, s, zero, s) + O.gaussian_kl(b, t, zero, t)
    total = table([1.0])
    end = O.gaussian_kl(a + b, total, zero, total)
    assert end < path
    np.testing.assert_allclose(float(end), 0.6**2 / 2)

"""Losses of noised images: against the implicit policies that they are made of, and their optimum."""

import math
from functools import partial

import pytest
import torch
from oracles import noising as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import Mutant, assert_close, mask_of, slope, table

CASES = {
    "diffusion_nft": [{}, {"beta": 0.3, "advantage_max": 0.5}],
    "denoising_loss": [{"coef": 0.1}, {"coef": 2.0}],
}
NAN = math.nan


def squares(predicted: Tensor, old: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three numbers that a policy gives of vectors ``[..., D]``."""
    pairs = ((predicted, target), (old, target), (predicted, old))
    now, before, moved = ((one - other).square().sum(-1) for one, other in pairs)
    return now, before, moved


def test_diffusion_nft_table() -> None:
    # one coordinate: target 1, old 0, predicted 1/2, beta 1/2, bound 2: v+ = 1/4, v- = -1/4, squares 9/16 and 25/16
    # A = 1: r = 3/4, so 4·(27 + 25)/64 = 3.25; A = -8 is cut, r = 0: 4·25/16 = 6.25. A = 0: 4·34/32 = 4.25
    now, old, kl = table([0.25] * 3 + [NAN]), table([1.0] * 3 + [NAN]), table([0.25] * 3 + [NAN])
    now.requires_grad_()
    kl.requires_grad_()
    advantage, mask = table([1.0, -8.0, 0.0, NAN]), mask_of("xxx.")
    out = O.diffusion_nft(now, old, kl, advantage, mask, beta=0.5, advantage_max=2.0)
    assert_close(out.loss, table([3.25, 6.25, 4.25, 0.0]))
    assert_close(slope(out.loss, now), table([1.0, -2.0, 0.0, 0.0]))  # A, cut
    assert_close(slope(out.loss, kl), table([0.0, 3.0, 1.0, 0.0]))  # a·beta - A
    assert [float(v) for v in out.metrics["denoising/loss"]] == [0.75, 3.0]
    assert [float(v) for v in out.metrics["denoising/kl"]] == [0.75, 3.0]


def test_denoising_loss_table() -> None:
    data = table([2.0, 3.0, NAN]).requires_grad_()
    out = O.denoising_loss(data, mask_of("xx."), coef=0.5)
    assert_close(out.loss, table([1.0, 1.5, 0.0]))
    assert_close(slope(out.loss, data), table([0.5, 0.5, 0.0]))
    assert [float(v) for v in out.metrics["denoising/data"]] == [5.0, 2.0]


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_the_two_implicit_policies(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, old, target = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    advantage = 3 * torch.randn(2, 4, generator=generator, dtype=torch.float64)
    predicted.requires_grad_()
    for beta, most in ((1.0, 5.0), (0.3, 2.0), (1.7, 1.0)):
        out = O.diffusion_nft(
            *squares(predicted, old, target),
            advantage,
            mask_of("xxxx", "xxx."),
            beta=beta,
            advantage_max=most,
        )
        found = slope(out.loss, predicted)
        for i, t in [(0, 0), (0, 3), (1, 2)]:
            vectors = (v[i, t].detach().numpy() for v in (predicted, old, target))
            loss, derivative = oracle.diffusion_nft(*vectors, float(advantage[i, t]), beta, most)
            assert out.loss[i, t].item() == pytest.approx(loss, rel=1e-12)
            assert_close(found[i, t], torch.from_numpy(derivative))
        assert out.loss[1, 3] == 0


def test_the_optimum_is_the_old_prediction_moved_along_what_the_advantage_weighs() -> None:
    # images j of weight w_j given a noised image; v_old their mean. u = sum w A (v - v_old)/(a beta)
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(6, generator=generator, dtype=torch.float64).softmax(0)
    target = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    old, advantage = weight @ target, torch.randn(6, generator=generator, dtype=torch.float64)
    for beta, most in ((1.0, 5.0), (0.3, 4.0)):
        best = (old + (weight * advantage) @ (target - old) / (most * beta)).requires_grad_()
        numbers = squares(best.expand(6, 3), old.expand(6, 3), target)
        out = O.diffusion_nft(
            *(n[:, None] for n in numbers),
            advantage[:, None],
            torch.ones(6, 1, dtype=torch.bool),
            beta=beta,
            advantage_max=most,
        )
        assert_close(slope(weight[:, None] * out.loss, best), torch.zeros(3, dtype=torch.float64), 1e-12)


def test_only_the_policy_of_now_is_trained() -> None:
    values = {name: torch.rand(1, 2, dtype=torch.float64).requires_grad_() for name in "abcd"}
    O.diffusion_nft(*values.values(), mask_of("xx")).loss.sum().backward()
    assert [name for name, value in values.items() if value.grad is not None] == ["a", "c"]


def test_a_reward_beside_data_does_not_tilt_them_and_ddrls_reward_does() -> None:
    # max E_p[r] - coef KL(data || p) on a grid, by Newton's method for the one number that normalises it
    data = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(0)
    reward, coef = torch.linspace(-1, 1, 50, dtype=torch.float64), 0.4

    def best(r: Tensor) -> Tensor:
        logits = data.log().clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

        def loss() -> Tensor:
            optimizer.zero_grad()
            p = logits.log_softmax(0)
            value = -(p.exp() @ r) - coef * (data @ p)
            value.backward()
            return value

        optimizer.step(loss)
        return logits.detach().softmax(0)

    tilted = (data.log() + reward / coef).softmax(0)
    z = coef * torch.logsumexp(data.log() + reward / coef, 0)
    assert_close(best(-coef * torch.exp(-(reward - z) / coef)), tilted, 1e-6)
    plain = best(reward)
    c = reward + coef * data / plain  # the same everywhere: data·coef/(c - r)
    assert_close(c, c.mean().expand(50), 1e-4)
    assert (plain - tilted).abs().sum() > 0.1


def mutant(name: str, before: str, after: str, test: object) -> Mutant:
    return Mutant(name, "noising.py", before, after, test)


OF_POLICIES = partial(test_the_loss_is_that_of_the_two_implicit_policies, 0)
MUTANTS = [
    mutant("mirror image", "beta * (1 + beta) * kl", "beta * (1 - beta) * kl", test_diffusion_nft_table),
    mutant("advantage not cut", "max).clamp(-1, 1)", "max)", test_diffusion_nft_table),
    mutant("good and bad", "right * positive + (1 - right)", "right * negative + (1 - right)", OF_POLICIES),
    mutant("scale of the released code", "advantage_max / beta * (", "(", OF_POLICIES),
    mutant("old loss", "denoising_old.detach()", "denoising_old", test_only_the_policy_of_now_is_trained),
    mutant("data without their weight", "(coef * loss", "(loss", test_denoising_loss_table),
]
FOUR, BOTH = [torch.zeros(1, 2)] * 4, mask_of("xx")
REFUSED = [
    (
        lambda: O.diffusion_nft(*FOUR, BOTH, beta=0.0),
        ValueError,
        "beta is 0.0, expected a number in (0, inf)",
    ),
    (lambda: O.diffusion_nft(*FOUR, BOTH, advantage_max=-1), ValueError, "advantage_max is -1"),
    (lambda: O.diffusion_nft(*FOUR, mask_of("xxx")), ValueError, "denoising has shape [1, 2]"),
    (lambda: O.denoising_loss(FOUR[0], BOTH, coef=-0.1), ValueError, "coef is -0.1"),
]

"""DDPO and DPOK: denoising steps as actions, with the true density and the true KL."""

import math

import pytest
import torch
from oracles import diffusion as oracle
from oracles import gaussian
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, slope, table

CASES = {"dpok": [{"coef": 0.3}]}

NAN = math.nan


def logps(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of each step, from the oracle."""
    rows = zip(*(v.expand_as(x).flatten(0, 1).numpy() for v in (x, mean, std)), strict=True)
    return torch.tensor([oracle.logp(*row) for row in rows], dtype=torch.float64).view(x.shape[:2])


def steps(seed: int) -> dict[str, Tensor]:
    """Two trajectories of three steps in four coordinates; the last step of each is off the mask."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(3, 2, 3, 4, generator=generator, dtype=torch.float64)
    std = torch.rand(3, 1, generator=generator, dtype=torch.float64) + 0.5  # of the schedule: a number a step
    mean = draws[1]
    old = logps(draws[0], mean + 0.1 * draws[2], std)
    return {
        "sample": draws[0],
        "mean": mean,
        "mean_ref": draws[2],
        "std": std,
        "logp_old": old,
        "advantage": torch.randn(2, 1, generator=generator, dtype=torch.float64).expand(2, 3).contiguous(),
        "mask": mask_of("xx.", "xx."),
    }


def ddpo(x: dict[str, Tensor], **settings: float) -> Tensor:
    names = ("sample", "mean", "std", "logp_old", "advantage", "mask")
    return O.ddpo(*(x[name] for name in names), **settings).loss


def dpok(x: dict[str, Tensor], coef: float = 0.3) -> Tensor:
    names = ("sample", "mean", "mean_ref", "std", "advantage", "mask")
    return O.dpok(*(x[name] for name in names), coef=coef).loss


def test_ddpo_table() -> None:
    # one coordinate, x = 1, σ = 1/2, μ_old = 0 (2σ away). Means 0, 1/4, 0 and a step of σ = 0 off the mask.
    # log ρ of 1/4: (4 - 2.25)/2 = 0.875, within 3. -dL/dμ = ρ·A·(1 - μ)/σ²: 4, ρ·3, and -4
    x = torch.ones(1, 4, 1, dtype=torch.float64)
    std = torch.tensor([[[0.5], [0.5], [0.5], [0.0]]], dtype=torch.float64)
    mean = torch.tensor([[[0.0], [0.25], [0.0], [NAN]]], dtype=torch.float64, requires_grad=True)
    old = O.gaussian_logp(x[:, :1], 0 * x[:, :1], std[:, :1]).expand(1, 4)
    rho = math.exp(0.875)
    out = O.ddpo(x, mean, std, old, table([1.0, 1.0, -1.0, NAN]), mask_of("xxx."), clip_high=2.0)
    assert_close(out.loss, table([-1.0, -rho, 1.0, 0.0]))
    assert_close(slope(out.loss, mean)[..., 0], table([-4.0, -3 * rho, 4.0, 0.0]))
    assert [float(v) for v in out.metrics["clip_high"]] == [0.0, 3.0]
    clipped = O.ddpo(x, mean, std, old, table([1.0, 1.0, -1.0, NAN]), mask_of("xxx."))
    assert_close(clipped.loss, table([-1.0, -1.2, 1.0, 0.0]))


def test_dpok_table() -> None:
    # x = 1, σ = 1/2, μ = 1/4, reference 0: logp = -9/8 - log(½√(2π)); KL = (1/16)/(1/2) = 1/8
    # -dL/dμ = (2·3/4 - 0.5·1/4)/(1/4) = 5.5
    x = torch.ones(1, 2, 1, dtype=torch.float64)
    mean = torch.tensor([[[0.25], [NAN]]], dtype=torch.float64, requires_grad=True)
    ref, std = torch.zeros(1, 2, 1, dtype=torch.float64), torch.tensor([[[0.5], [0.0]]]).double()
    out = O.dpok(x, mean, ref, std, table([2.0, NAN]), mask_of("x."), coef=0.5)
    logp = -9 / 8 - math.log(0.5 * math.sqrt(2 * math.pi))
    assert_close(out.loss, table([-2 * logp + 1 / 16, 0.0]))
    assert_close(slope(out.loss, mean)[..., 0], table([-5.5, 0.0]))
    assert [float(v) for v in out.metrics["kl"]] == [0.125, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_oracles_and_have_their_gradients(seed: int) -> None:
    x = steps(seed)
    x["mean"].requires_grad_()
    std = x["std"].expand(2, 3, 4)
    a = {name: value.detach().numpy() for name, value in x.items()} | {"std": std.numpy()}
    for low, high in [(0.1, 0.4), (1.0, 1.0)]:
        loss, derivative = oracle.ddpo(
            *(a[name] for name in ("sample", "mean", "std", "logp_old", "advantage", "mask")), low, high
        )
        ours = ddpo(x, clip_low=low, clip_high=high)
        assert_close(ours, loss)
        assert_close(slope(ours, x["mean"]), derivative)
    loss, derivative = oracle.dpok(
        *(a[name] for name in ("sample", "mean", "mean_ref", "std", "advantage", "mask")), 0.3
    )
    assert_close(dpok(x), loss)
    assert_close(slope(dpok(x), x["mean"]), derivative)
    assert torch.autograd.gradcheck(lambda mean: ddpo({**x, "mean": mean}, clip_high=1e9), x["mean"])
    assert torch.autograd.gradcheck(lambda mean: dpok({**x, "mean": mean}), x["mean"])


@pytest.mark.parametrize("loss", [ddpo, dpok])
def test_values_off_the_mask_are_not_read_and_only_the_mean_is_trained(loss: object) -> None:
    x = steps(0)
    inputs = {name: v.clone().requires_grad_() if name != "mask" else v for name, v in x.items()}
    before = {name: v.detach().clone() for name, v in inputs.items()}
    expected = loss(inputs)  # type: ignore[operator]
    expected.sum().backward()
    used = {name for name, v in inputs.items() if v.grad is not None}
    assert used == {"mean"}
    assert all(torch.equal(inputs[name], before[name]) for name in inputs)
    spoiled = {}
    for name, value in x.items():
        mask = x["mask"] if value.ndim == 2 else x["mask"][..., None]
        spoiled[name] = value if name in ("mask", "std") else torch.where(mask, value, NAN)
    spoiled["std"] = torch.cat([x["std"][:2], torch.zeros(1, 1, dtype=torch.float64)])  # a step without noise
    spoiled["mean"].requires_grad_()
    again = loss(spoiled)  # type: ignore[operator]
    assert_close(again, expected.detach())
    assert_close(slope(again, spoiled["mean"]), inputs["mean"].grad)
    order = torch.tensor([1, 0])
    shuffled = {name: value if name == "std" else value[order] for name, value in x.items()}
    assert_close(loss(shuffled), expected.detach()[order])  # type: ignore[operator]


def one_step(mean: Tensor, std: float, reward: Tensor) -> dict[str, Tensor]:
    """A step from N(mean, std²) at each node of the quadrature, as a row of its own."""
    x = mean.detach() + std * torch.tensor(gaussian.NODES)
    rows = len(x)
    return {
        "sample": x[:, None, None],
        "mean": mean.expand(rows)[:, None, None],
        "std": table([std]),
        "logp_old": O.gaussian_logp(
            x[:, None, None], mean.detach().expand(rows)[:, None, None], table([std])
        ),
        "advantage": reward[:, None],
        "mask": torch.ones(rows, 1, dtype=torch.bool),
    }


def test_mean_gradients_are_those_of_the_expected_reward_and_of_the_kl() -> None:
    # reward x² under N(μ, σ²): E = μ² + σ², so the gradient is 2μ; the KL's is (μ - μ_ref)/σ²
    mean, std, ref = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), 0.4, -0.2
    reward = (mean.detach() + std * torch.tensor(gaussian.NODES)).square()
    x = one_step(mean, std, reward)
    weights = torch.tensor(gaussian.WEIGHTS)[:, None]
    assert_close(slope(weights * ddpo(x), mean), -1.4, 1e-10)
    x["mean_ref"] = torch.full_like(x["sample"], ref)
    pull = (0.7 - ref) / std**2
    assert_close(slope(weights * dpok(x, coef=0.3), mean), -1.4 + 0.3 * pull, 1e-10)


def test_a_mean_over_coordinates_is_another_ratio() -> None:
    # DDPO's released code clips at 1e-4 what is the D-th root of the ratio here
    x = steps(0)
    new = logps(x["sample"], x["mean"], x["std"])
    root = ((new - x["logp_old"]) / 4).exp()
    ratio = -ddpo({**x, "advantage": torch.ones_like(x["advantage"])}, clip_low=1, clip_high=1e9)
    assert_close(ratio[x["mask"]], (root**4)[x["mask"]])

"""Policy gradients that look at entropy."""

import math

import pytest
import torch
from oracles import exploration as oracle
from torch import Tensor

from klent import objectives as O
from objectives.helpers import assert_close, mask_of, random_tokens, slope, table

CASES = {"entropy_ratio_clip": [{"low": 0.5, "high": 0.9}]}

NAN, INF = math.nan, math.inf
MASK = mask_of("xxxx.")


def test_entropy_shaped_table() -> None:
    # ψ = min(0.5·H, |A|/4): 0.25 of both, 0.1 of the entropy alone, 0.5 of the advantage alone, 0 without one
    x = table([0.0, 0.0, 0.0, 0.0, NAN]).requires_grad_()
    entropy, advantage = table([0.5, 0.2, 9.0, 9.0, NAN]), table([1.0, -1.0, -2.0, 0.0, NAN])
    out = O.entropy_shaped(x, x.detach(), entropy, advantage, MASK, alpha=0.5, kappa=4.0)
    assert_close(out.loss, table([-1.25, 0.9, 1.5, 0.0, 0.0]))
    assert_close(slope(out.loss, x), table([-1.25, 0.9, 1.5, 0.0, 0.0]))
    assert [float(v) for v in out.metrics["shaping"]] == pytest.approx([0.85, 4.0])


def test_entropy_shaped_weighs_and_is_no_bonus() -> None:
    tokens = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in random_tokens(0).items()}
    args = [tokens[name] for name in ("logp", "logp_old", "entropy", "advantage", "mask")]
    loss = O.entropy_shaped(*args).loss.sum()
    slopes = torch.autograd.grad(loss, args[:4], allow_unused=True)
    assert slopes[0].any()
    assert slopes[1:] == (None, None, None)


def test_a_ratio_out_of_bounds_is_clipped_by_the_sign_of_the_shaped_advantage() -> None:
    x = table([0.3, -0.3]).requires_grad_()
    zero = torch.zeros(1, 2, dtype=torch.float64)
    advantage, both = table([1.0, -1.0]), mask_of("xx")
    for shaped in (
        O.entropy_shaped(x, zero, zero + 1, advantage, both, clip_low=0.1, clip_high=0.1),
        O.entropy_ratio_clip(x, zero, zero + 1, zero + 1, advantage, both, clip_low=0.1, clip_high=0.1),
    ):
        assert_close(slope(shaped.loss, x), zero)
        assert [float(v) for v in shaped.metrics["clip_low"]] == [1.0, 2.0]
        assert [float(v) for v in shaped.metrics["clip_high"]] == [1.0, 2.0]


def test_entropy_ratio_clip_table() -> None:
    # the band is 0.8 to 1.5 times the old entropy, its ends included: kept, kept, fell, rose
    x = table([0.0, 0.0, 0.0, 0.0, NAN]).requires_grad_()
    new, old = table([1.6, 3.0, 0.79, 3.1, NAN]), table([2.0, 2.0, 1.0, 2.0, NAN])
    advantage = table([1.0, -1.0, 1.0, -1.0, NAN])
    out = O.entropy_ratio_clip(x, x.detach(), new, old, advantage, MASK, low=0.2, high=0.5)
    assert_close(out.loss, table([-1.0, 1.0, 0.0, 0.0, 0.0]))
    assert_close(slope(out.loss, x), table([-1.0, 1.0, 0.0, 0.0, 0.0]))
    assert [float(v) for v in out.metrics["entropy_fell"]] == [1.0, 4.0]
    assert [float(v) for v in out.metrics["entropy_rose"]] == [1.0, 4.0]
    assert [float(v) for v in out.metrics["ratio"]] == [2.0, 2.0]


def test_entropy_ratio_clip_at_its_ends() -> None:
    zero, one, both = torch.zeros(1, 2, dtype=torch.float64), table([1.0, 1.0]), mask_of("xx")
    open_band = O.entropy_ratio_clip(zero, zero, table([0.0, 9.0]), table([0.0, 1.0]), one, both, high=INF)
    assert_close(open_band.loss, -one)  # no bound above, and 0 stays 0
    closed = O.entropy_ratio_clip(zero, zero, table([1.0, 1.1]), one, one, both, low=0, high=0)
    assert_close(closed.loss, table([-1.0, 0.0]))


@pytest.mark.parametrize("seed", range(3))
def test_losses_agree_with_oracles_and_have_their_gradients(seed: int) -> None:
    tokens = random_tokens(seed)
    x, old, entropy, advantage, mask = (
        tokens[name] for name in ("logp", "logp_old", "entropy", "advantage", "mask")
    )
    before = (entropy + 0.1 * tokens["advantage"].sin()).abs() + 1e-3
    x.requires_grad_()
    a = [v.detach().numpy() for v in (x, old, entropy, advantage, mask)]

    def shaped(x: Tensor) -> Tensor:
        settings = {"alpha": 0.3, "kappa": 1.5, "clip_low": 0.1, "clip_high": 0.3}
        return O.entropy_shaped(x, old, entropy, advantage, mask, **settings).loss

    def bounded(x: Tensor) -> Tensor:
        settings = {"low": 0.1, "high": 0.2, "clip_low": 0.1, "clip_high": 0.3}
        return O.entropy_ratio_clip(x, old, entropy, before, advantage, mask, **settings).loss

    expected = {
        shaped: oracle.entropy_shaped(*a, 0.3, 1.5, 0.1, 0.3),
        bounded: oracle.entropy_ratio_clip(*a[:3], before.numpy(), *a[3:], 0.1, 0.2, (0.1, 0.3)),
    }
    for function, (loss, derivative) in expected.items():
        assert_close(function(x), loss)
        assert_close(slope(function(x), x), derivative)
        assert torch.autograd.gradcheck(function, (x,))
        assert function(x).any()

"""Narrow inputs: no worse than a model's own head, sums in float32, gradients in the input's dtype."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from head.helpers import Problem, everything, problem
from klent import token_stats

NAMES = ("hidden", "weight", "bias")


def naive(p: Problem) -> dict[str, Tensor]:
    """What a model does in its own dtype, without this package."""
    hidden, weight, bias = (x.detach().clone().requires_grad_() for x in (p.hidden, p.weight, p.bias))
    logp = torch.log_softmax((torch.nn.functional.linear(hidden, weight, bias)) / p.temperature, -1)
    at_target = logp.gather(1, p.target.unsqueeze(1)).squeeze(1)
    entropy = -(logp.exp() * logp).sum(-1)
    torch.autograd.backward([at_target, entropy], [p.c.to(at_target), p.e.to(at_target)])
    return {
        "logp": at_target,
        "entropy": entropy,
        "dhidden": hidden.grad,
        "dweight": weight.grad,
        "dbias": bias.grad,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(41, 7, 1271), (130, 64, 2100)])
def test_error_is_at_most_that_of_the_naive_head(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    p = problem(*shape, dtype=dtype)
    exact = everything(p.to(torch.float64), implementation="reference")
    fused, plain = everything(p), naive(p)
    for name, truth in exact.items():
        scale = float(truth.abs().max())
        error = float((fused[name].double() - truth).abs().max()) / scale
        limit = float((plain[name].detach().double() - truth).abs().max()) / scale
        assert error <= limit + 2e-6, f"{name}: {error:.2e} where the naive head has {limit:.2e}"
    assert fused["logp"].dtype == fused["entropy"].dtype == torch.float32
    assert all(fused[f"d{name}"].dtype == dtype for name in NAMES)


def test_sums_over_many_rows_are_float32_for_bfloat16() -> None:
    """4,000 equal contributions of 1/4096: bfloat16 sums would stop growing long before."""
    rows, size = 4000, 4
    weight = torch.zeros(size, 1, dtype=torch.bfloat16, requires_grad=True)
    out = token_stats(torch.ones(rows, 1, dtype=torch.bfloat16), weight, torch.zeros(rows, dtype=torch.int64))
    (out.logp.sum() / 4096).backward()
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25]).unsqueeze(1) * rows / 4096
    torch.testing.assert_close(weight.grad, expected.bfloat16(), rtol=0, atol=0)


def test_mixed_precision_inputs_and_autocast() -> None:
    p = problem(20, 8, 130, dtype=torch.float32)
    p = replace(p, hidden=p.hidden.bfloat16())
    expected = everything(p)
    assert expected["dhidden"].dtype == torch.bfloat16
    assert expected["dweight"].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = everything(p)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())

"""The GPU head, run by Triton's interpreter on the CPU: the numbers and gradients of the definition."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from head.helpers import Problem, everything, problem, stats
from klent import token_stats

pytest.importorskip("triton", reason="the GPU head needs Triton: pip install triton")

import triton

from klent.head import triton as gpu

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before TRITON_INTERPRET=1 was set", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's NumPy, on a row of NaN
SHAPES = [(13, 7, 100), (1, 1, 1), (3, 5, 2), (8, 4, 64), (9, 4, 65)]
CAPS: list[dict[str, Any]] = [{}, {"softcap": 3.0}, {"softcap": 2.0, "scale": -0.5}]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TILE_ROWS", 8)
    monkeypatch.setattr(gpu, "TILE_COLUMNS", 64)
    monkeypatch.setattr(gpu, "BLOCK", 32)


def close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        error = float((actual[name].double() - value.double()).abs().max() / value.abs().max().clamp(min=1))
        assert error <= tolerance, f"{name} is off by {error:.2e}"


@pytest.mark.parametrize(
    ("shape", "options"), [*((s, {}) for s in SHAPES), *((SHAPES[0], cap) for cap in CAPS[1:])], ids=str
)
def test_values_and_gradients_equal_the_reference(
    shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    p = problem(*shape, dtype=torch.float32)
    exact = everything(p.to(torch.float64), implementation="reference", **options)
    close(everything(p, implementation="triton", **options), exact, 1e-5)


@pytest.mark.parametrize("options", CAPS, ids=str)
def test_bfloat16_sums_in_float32(options: dict[str, Any]) -> None:
    """Values have float32's error, gradients that of coefficients of 8 bits, cut off in the interpreter."""
    p = problem(13, 16, 100, dtype=torch.bfloat16)
    exact = everything(p.to(torch.float64), implementation="reference", **options)
    actual = everything(p, implementation="triton", **options)
    close({k: actual[k] for k in ("logp", "entropy")}, {k: exact[k] for k in ("logp", "entropy")}, 1e-5)
    gradients = ("dhidden", "dweight", "dbias")
    close({k: actual[k] for k in gradients}, {k: exact[k] for k in gradients}, 2**-7)
    assert all(actual[k].dtype == torch.bfloat16 for k in gradients)


def test_dropped_rows_and_no_rows() -> None:
    p = problem(20, 4, 100, dtype=torch.float32)
    keep = torch.arange(20) % 3 == 0
    p = replace(p, c=p.c * keep, e=p.e * (torch.arange(20) % 6 == 0))
    expected = everything(p.to(torch.float64), implementation="reference")
    actual = everything(p, implementation="triton")
    close(actual, expected, 1e-5)
    assert torch.equal(actual["dhidden"][~keep], torch.zeros(int((~keep).sum()), 4))
    none = everything(replace(p, c=torch.zeros(20), e=torch.zeros(20)), implementation="triton")
    assert all(torch.equal(none[k], torch.zeros_like(none[k])) for k in ("dhidden", "dweight", "dbias"))


def test_a_broken_row_without_a_coefficient_does_no_harm() -> None:
    p = problem(12, 4, 100, dtype=torch.float32)
    p.c[3] = p.e[3] = 0.0
    expected = everything(p, implementation="triton")
    p.hidden[3] = torch.nan
    actual = everything(p, implementation="triton")
    for name in ("dhidden", "dweight", "dbias"):
        assert torch.equal(actual[name], expected[name])


def test_a_broken_row_is_seen() -> None:
    p = problem(3, 4, 100, dtype=torch.float32)
    p.hidden[1] = torch.nan
    out = stats(p, implementation="triton")
    assert out.entropy is not None
    assert out.logp.isnan().tolist() == out.entropy.isnan().tolist() == [False, True, False]


def test_masked_vocabulary_and_impossible_target() -> None:
    p = problem(10, 4, 100, dtype=torch.float32)
    p.bias[:70] = -torch.inf
    p = replace(p, target=p.target % 30 + 70)
    p.target[0] = 5
    expected = everything(p.to(torch.float64), implementation="reference")
    actual = everything(p, implementation="triton")
    assert actual["logp"][0] == expected["logp"][0] == -torch.inf
    finite = {k: v[1:] if k == "logp" else v for k, v in expected.items()}
    close({k: v[1:] if k == "logp" else v for k, v in actual.items()}, finite, 1e-5)


def test_large_logits_that_grow_and_shrink_along_the_vocabulary() -> None:
    p = problem(6, 1, 100, dtype=torch.float32)
    slope = torch.linspace(-1, 1, 100).unsqueeze(1)
    p = replace(p, weight=slope, hidden=torch.tensor([[-4e3], [4e3], [30.0], [-30.0], [0.0], [1e-3]]))
    exact = everything(p.to(torch.float64), implementation="reference")
    close(everything(p, implementation="triton"), exact, 2e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_each_input_may_be_frozen(frozen: str) -> None:
    p = problem(10, 5, 130, dtype=torch.float32)
    expected = everything(p, implementation="reference")
    for name in {"hidden", "weight", "bias"} - {frozen}:
        getattr(p, name).requires_grad_()
    out = stats(p, implementation="triton")
    assert out.entropy is not None
    torch.autograd.backward([out.logp, out.entropy], [p.c.float(), p.e.float()])
    for name in ("hidden", "weight", "bias"):
        gradient = getattr(p, name).grad
        assert (gradient is None) == (name == frozen)
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[f"d{name}"], rtol=1e-4, atol=1e-4)


def test_without_bias_and_without_entropy() -> None:
    p = problem(10, 5, 130, dtype=torch.float32)
    out = stats(p, implementation="triton", bias=None, entropy=False)
    assert out.entropy is None
    torch.testing.assert_close(out.logp, stats(p, implementation="reference", bias=None).logp)


def test_float64_goes_to_the_chunked_head() -> None:
    p: Problem = problem(10, 5, 130)
    close(everything(p, implementation="triton"), everything(p, implementation="reference"), 1e-11)


def test_a_second_derivative_is_refused() -> None:
    p = problem(4, 3, 9, dtype=torch.float32)
    p.hidden.requires_grad_()
    logp = token_stats(p.hidden, p.weight, p.target, implementation="triton").logp
    with pytest.raises(RuntimeError, match=r"differentiable once.*implementation=.reference."):
        torch.autograd.grad(logp.square().sum(), p.hidden, create_graph=True)


@pytest.mark.parametrize("options", CAPS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_collision_equals_the_reference(shape: tuple[int, int, int], options: dict[str, Any]) -> None:
    p = problem(*shape, dtype=torch.float32)
    if len(p.bias) > 2:
        p.bias[1] = -torch.inf
    exact = stats(p.to(torch.float64), implementation="reference", collision=True, **options)
    actual = stats(p, implementation="triton", collision=True, **options)
    for mine, theirs in zip(actual[1:], exact[1:], strict=True):
        assert mine is not None
        assert theirs is not None
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)
    plain = stats(p, implementation="triton", **options)
    assert plain.collision is None
    assert plain.entropy is not None
    assert actual.entropy is not None
    assert torch.equal(actual.entropy, plain.entropy)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from klent.head import triton as head

integers = dict.fromkeys(["stride", "first", "above", "start", "width"], "i32")
types = {"out": "*bf16", "bias": "*bf16", "target": "*i64", "index": "*i64", "scale": "fp32", "reach": "fp32"}
flags = {head._fold: ["SQUARES"], head._coefficients: ["INDEXED"]}
for kernel, own in flags.items():
    for on in (False, True):
        constants = dict.fromkeys(["HAS_BIAS", "CAPPED", "EVEN", *own], on) | {"BLOCK": 1024}
        names = [p.name for p in kernel.params]
        signature = {n: "constexpr" if n in constants else (integers | types).get(n, "*fp32") for n in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        for arch in (80, 90):
            assert triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm["ptx"]
"""


@pytest.mark.skipif(importlib.util.find_spec("triton.backends.nvidia") is None, reason="Triton without CUDA")
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """Types that the interpreter does not look at; compiling needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

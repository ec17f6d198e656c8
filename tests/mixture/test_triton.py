"""The GPU solver in Triton's interpreter on the CPU, against scipy's root in float64 and plain torch."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import mixture as oracle
from scipy.optimize import brentq
from torch import Tensor

from klent import mixture as M
from klent.mixture import solve
from mixture.test_solve import EDGES, pair, peaked

pytest.importorskip("triton", reason="the GPU solver needs Triton: pip install triton")

import triton

from klent.mixture import triton as gpu

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before TRITON_INTERPRET=1 was set", allow_module_level=True)

INF = math.inf
# the interpreter's NumPy, on infinities that the kernel expects
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")
NUMBERS = ("alpha", "log_q", "kl_policy", "kl_target", "residual")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BLOCK", 64)


def on_chip(policy: Tensor, target: Tensor, **options: object) -> M.MixtureSolution:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "_has_kernel", lambda logits: True)
        return M.solve_alpha(policy, target, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [2, 17, 64, 65, 300])
@pytest.mark.parametrize("make", [pair, peaked])
def test_chernoff_is_scipys_root(size: int, make: object) -> None:
    policy, target = make(4, size)  # type: ignore[operator]
    solution = on_chip(policy, target)
    assert solution.converged.all()
    assert solution.iterations.max() <= 12
    assert solution.residual.max() < 1e-4
    for row in range(4):
        a, b = policy[row].double().numpy(), target[row].double().numpy()
        alpha = oracle.chernoff(a, b)
        q = oracle.mixture(a, b, alpha)
        p, t = (np.exp(oracle.normalise(x)) for x in (a, b))
        assert solution.alpha[row].item() == pytest.approx(alpha, abs=2e-4)
        np.testing.assert_allclose(solution.log_q[row].exp().numpy(), q, atol=1e-4)
        assert solution.kl_policy[row].item() == pytest.approx(oracle.kl(q, p), abs=1e-4)
        assert solution.kl_target[row].item() == pytest.approx(oracle.kl(q, t), abs=1e-4)


@pytest.mark.parametrize("size", [17, 200])
def test_kl_budget_is_scipys_root(size: int) -> None:
    policy, target = pair(4, size, scale=1.0)
    solution = on_chip(policy, target, criterion="kl_budget", value=0.05)
    assert solution.converged.all()
    for row in range(4):
        a, b = policy[row].double().numpy(), target[row].double().numpy()
        p = np.exp(oracle.normalise(a))
        alpha = brentq(lambda x, a=a, b=b, p=p: oracle.kl(oracle.mixture(a, b, x), p) - 0.05, 0, 1)
        assert solution.alpha[row].item() == pytest.approx(alpha, abs=1e-4)
        assert solution.kl_policy[row].item() == pytest.approx(0.05, abs=1e-5)
        np.testing.assert_allclose(solution.log_q[row].exp().numpy(), oracle.mixture(a, b, alpha), atol=1e-5)
    too_much = on_chip(policy, target, criterion="kl_budget", value=1e3)
    assert not too_much.converged.any()
    assert (too_much.alpha == 0).all()
    torch.testing.assert_close(too_much.log_q, target.log_softmax(-1))


@pytest.mark.parametrize("size", [0, 150])
@pytest.mark.parametrize("name", EDGES)
def test_edges_have_the_documented_answer(name: str, size: int) -> None:
    policy, target, alpha, converged = EDGES[name]
    padding = [-INF] * max(size - len(policy), 0)
    for a, b in ((policy + padding, target + padding), (padding + policy, padding + target)):
        solution = on_chip(torch.tensor([a]), torch.tensor([b]))
        assert solution.alpha.item() == pytest.approx(alpha)
        assert solution.converged.item() is converged
        assert not any(getattr(solution, number).isnan().any() for number in NUMBERS)
        assert solution.log_q.exp().sum().item() == pytest.approx(1)
        if name == "disjoint":
            assert solution.kl_target.item() == solution.residual.item() == INF
            torch.testing.assert_close(solution.log_q, torch.tensor([a]).log_softmax(-1))


@pytest.mark.parametrize(("criterion", "value"), [("chernoff", None), ("kl_budget", 0.1), ("kl_budget", 1.5)])
def test_every_pattern_of_support_is_answered_as_by_torch(criterion: str, value: float | None) -> None:
    """Rows of four tokens out of -inf, far, near and likely ones, against float64 without a kernel."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([-INF, -INF, -30.0, -2.0, 0.0, 1.0, 40.0])
    policy, target = levels[torch.randint(len(levels), (2, 60, 4), generator=generator)]
    policy[:, 0], target[:, 3] = 0.0, 0.0
    exact = M.solve_alpha(
        policy.double(), target.double(), criterion=criterion, value=value, tolerance=1e-6  # type: ignore[arg-type]
    )  # fmt: skip
    solution = on_chip(policy, target, criterion=criterion, value=value)
    assert torch.equal(solution.converged, exact.converged)
    assert 10 < solution.converged.sum() < 55
    torch.testing.assert_close(solution.log_q.exp().double(), exact.log_q.exp(), atol=1e-4, rtol=0)
    assert torch.equal(solution.log_q.isfinite(), exact.log_q.isfinite())
    # In two rows every alpha of an interval solves to within the tolerance.
    assert ((solution.alpha - exact.alpha).abs() < 1e-4).sum() >= 58
    for name in ("kl_policy", "kl_target"):
        torch.testing.assert_close(
            getattr(solution, name).double(), getattr(exact, name), atol=1e-4, rtol=1e-5
        )
    missed = ~exact.converged
    assert solution.iterations.max() <= 20
    torch.testing.assert_close(
        solution.residual[missed].double(), exact.residual[missed], atol=1e-5, rtol=1e-5
    )


def test_extreme_logits_give_no_nan() -> None:
    least = torch.finfo(torch.float32).min
    rows = [([0.0, least], [0.0, 0.0]), ([0.0, least], [least, 0.0]), ([1e4, 0.0], [0.0, 1e4])]
    rows += [([0.0, -1e4], [-1e4, 0.0]), ([88.0, -88.0], [-88.0, -88.0]), ([1e29, 0.0], [0.0, 1e29])]
    solution = on_chip(*(torch.tensor([row[k] for row in rows]) for k in (0, 1)))
    for number in NUMBERS:
        assert not getattr(solution, number).isnan().any()
    torch.testing.assert_close(solution.log_q[:5].exp().sum(-1), torch.ones(5), atol=1e-3, rtol=0)
    # The lowest number of float32, as masks write it, is no probability.
    assert solution.alpha[:2].tolist() == [0, 1]
    assert solution.log_q[0].tolist() == [0, -INF]


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_half_precision_is_read_as_it_is(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    policy, target = (x.to(dtype) for x, dtype in zip(pair(3, 150), dtypes, strict=True))
    half, full = on_chip(policy, target), on_chip(policy.float(), target.float())
    assert half.log_q.dtype == half.alpha.dtype == torch.float32
    assert torch.equal(half.log_q, full.log_q)
    torch.testing.assert_close(half.alpha, M.solve_alpha(policy.double(), target.double()).alpha.float())


def test_batches_strides_and_output() -> None:
    both = torch.stack(pair(12, 100)).view(2, 3, 4, 100)
    policy, target = both[:, :, -1]  # rows apart
    expected = M.solve_alpha(policy, target)
    for a, b in ((policy, target), (policy.T.contiguous().T, target), (policy.clone(), target)):
        out = torch.empty(3, 100)
        solution = on_chip(a, b, out=out)
        assert solution.log_q is out
        torch.testing.assert_close(solution.alpha, expected.alpha)
        torch.testing.assert_close(out, expected.log_q)
    assert on_chip(both[0], both[1]).alpha.shape == (3, 4)
    assert on_chip(torch.zeros(0, 5), torch.zeros(0, 5)).log_q.shape == (0, 5)


def test_newtons_method_takes_few_sweeps_where_rows_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BLOCK", 512)
    solution = on_chip(*pair(3, 1500))
    assert solution.iterations.max() <= 5


def test_the_tolerance_is_heeded() -> None:
    policy, target = pair(5, 40)
    loose, tight = (on_chip(policy, target, tolerance=x) for x in (0.1, 1e-6))
    assert (loose.iterations < tight.iterations).any()
    assert tight.residual.max() < 1e-5


def test_the_rest_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gpu, "_solve")
    policy, target = pair(2, 20, scale=1.0)
    for criterion, value in (("entropy", 2.0), ("ess", 0.9), ("snr", None)):
        on_chip(policy, target, criterion=criterion, value=value)
    on_chip(policy.double(), target)
    with pytest.raises(NameError):
        on_chip(policy, target)
    M.solve_alpha(policy, target)  # a tensor on the CPU


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from klent.mixture.triton import _solve

types = dict(policy="*bf16", policy_stride="i32", target="*fp32", target_stride="i32", log_q="*fp32",
             numbers="*fp32", size="i32", tolerance="fp32", eps="fp32", value="fp32")
constants = dict(BUDGET=True, LIMIT=60, BLOCK=64)
source = ASTSource(fn=_solve, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"]
"""


@pytest.mark.skipif(importlib.util.find_spec("triton.backends.nvidia") is None, reason="Triton without CUDA")
def test_the_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Types and shapes that the interpreter does not look at; compiling needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

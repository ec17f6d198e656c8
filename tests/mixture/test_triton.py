"""The GPU solvers in Triton's interpreter on the CPU, against scipy in float64 or more, and against plain torch."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import mixture as oracle
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from klent import mixture as M
from klent.mixture import solve
from mixture.test_solve import EDGES, pair, peaked

pytest.importorskip("triton", reason="the GPU solver needs Triton: pip install triton")

import triton
from triton.runtime import interpreter

from klent.mixture import triton as gpu

if not triton.knobs.runtime.interpret:
    pytest.skip("Triton was imported before TRITON_INTERPRET=1 was set", allow_module_level=True)

INF = math.inf
# the interpreter's NumPy, on infinities that the kernel expects
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} encountered") for what in ("overflow", "invalid value")
]
NUMBERS = ("alpha", "log_q", "kl_policy", "kl_target", "residual")


@pytest.fixture(autouse=True)
def patched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter patches Triton's language for a kernel, and again at every call inside it: half of its time."""
    patch, patched = interpreter._patch_lang, set()

    def once(function: Any) -> Any:
        if id(function.__globals__) in patched:
            return None
        patched.add(id(function.__globals__))
        scope = patch(function)
        restore = scope.restore
        scope.restore = lambda: (patched.clear(), restore())
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", once)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BLOCK", 64)
    monkeypatch.setattr(gpu, "SNR_BLOCK", 64)


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


@pytest.mark.parametrize(("make", "value"), [(pair, 0.3), (peaked, 0.9)])
def test_ess_is_scipys_root(make: object, value: float) -> None:
    policy, target = make(4, 130)  # type: ignore[operator]
    solution = on_chip(policy, target, criterion="ess", value=value)
    for row in range(4):
        a, b = policy[row].double().numpy(), target[row].double().numpy()
        p = np.exp(oracle.normalise(a))

        def ess(alpha: float, a: np.ndarray = a, b: np.ndarray = b, p: np.ndarray = p) -> float:
            return float(1 / np.sum(p**2 / oracle.mixture(a, b, alpha)))

        if ess(0.0) > value:
            assert solution.alpha[row] == 0
            assert not solution.converged[row]
            continue
        alpha = brentq(lambda x, f=ess: f(x) - value, 0, 1, xtol=1e-13)
        assert solution.converged[row]
        assert solution.alpha[row].item() == pytest.approx(alpha, abs=2e-5)
        np.testing.assert_allclose(solution.log_q[row].exp().numpy(), oracle.mixture(a, b, alpha), atol=2e-5)
    assert solution.converged.sum() >= 2
    assert solution.iterations.max() <= 12
    assert (on_chip(policy, target, criterion="ess", value=1.0).alpha == 1).all()


def entropy(a: np.ndarray, b: np.ndarray, alpha: float) -> float:
    q = oracle.mixture(a, b, alpha)
    return -float(np.sum(q[q > 0] * np.log(q[q > 0])))


def test_entropy_is_scipys_first_crossing() -> None:
    """Rows whose entropy falls, rises, and rises before it falls from policy to target; one never gets there."""
    policy, target = pair(5, 130, scale=1.0)
    target[0] *= 3
    policy[1] *= 3
    policy[2, 0], target[2, 1] = 9.0, 12.0
    policy[3, 0], target[3, :] = 15.0, policy[3].flip(0)
    policy[4], target[4] = policy[4] / 9, target[4] / 9
    solution = on_chip(policy, target, criterion="entropy", value=4.0)
    assert solution.converged.tolist() == [True, True, True, True, False]
    for row in range(5):
        a, b = policy[row].double().numpy(), target[row].double().numpy()
        missed = [entropy(a, b, 1 - k / 16) - 4.0 for k in range(17)]
        k = next((k for k in range(16) if missed[k] * missed[k + 1] < 0), None)
        if k is None:
            k = min(range(17), key=lambda k, missed=missed: abs(missed[k]))
            assert solution.alpha[row] == 1 - k / 16
            assert solution.residual[row].item() == pytest.approx(abs(missed[k]), abs=1e-5)
            continue
        alpha = brentq(lambda x, a=a, b=b: entropy(a, b, x) - 4.0, 1 - (k + 1) / 16, 1 - k / 16, xtol=1e-13)
        assert solution.alpha[row].item() == pytest.approx(alpha, abs=2e-5)
        assert solution.iterations[row] <= 12
        assert solution.log_q[row].exp().sum().item() == pytest.approx(1)


def test_entropy_missed_alike_at_both_ends_is_on_policy() -> None:
    policy, _ = pair(6, 70)
    solution = on_chip(policy, policy.flip(-1), criterion="entropy", value=0.1)
    assert solution.alpha.tolist() == [1] * 6
    assert not solution.converged.any()


def snr(a: np.ndarray, b: np.ndarray, r: np.ndarray | None, s: float) -> np.longdouble:
    """From its definition, with numbers of 64 bits and their squares of as many."""
    log_p, log_t = (x - np.logaddexp.reduce(x) for x in (a.astype(np.longdouble), b.astype(np.longdouble)))
    x = np.exp(-s * (log_t - log_p)) * (log_t - log_p if r is None else r)
    p, t = np.exp(log_p), np.exp(log_t)
    return np.sum((t - p) * x) / np.sqrt(np.sum(p * (x - np.sum(p * x)) ** 2))


def sharp(rows: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The policy has all but 1e-13 on one token, where sums of squares leave nothing of its variance."""
    policy, target = peaked(rows, size, seed)
    policy[:, 0] += 14
    return policy, target


@pytest.mark.parametrize(("make", "own"), [(pair, True), (pair, False), (peaked, True), (sharp, True)])
def test_snr_is_the_largest(make: object, own: bool) -> None:
    policy, target = make(4, 70, seed=1)  # type: ignore[operator]
    reward = torch.randn(4, 70, generator=torch.Generator().manual_seed(5)) - 0.3
    solution = on_chip(policy, target, criterion="snr", reward=reward if own else None)
    assert solution.converged.all()
    assert solution.residual.max() <= 3e-8
    for row in range(4):
        a, b = policy[row].numpy(), target[row].numpy()
        r = reward[row].double().numpy() if own else None
        grid = np.linspace(0, 1, 33)
        best = grid[np.argmax([snr(a, b, r, s) for s in grid])]
        near = max(best - 1 / 32, 0), min(best + 1 / 32, 1)
        found = minimize_scalar(
            lambda s, a=a, b=b, r=r: -snr(a, b, r, s), bounds=near, method="bounded", options={"xatol": 1e-10}
        )
        s = max((found.x, *near), key=lambda s, a=a, b=b, r=r: snr(a, b, r, s))
        assert solution.alpha[row].item() == pytest.approx(1 - s, abs=2e-7)
    if not own:
        assert (solution.alpha == 1).all()
    else:
        assert len(solution.alpha.unique()) > 2


def test_snr_of_rewards_that_tell_nothing_is_on_policy() -> None:
    """No signal, or a ratio that is the same for every mixture: the policy is nearest."""
    policy, target = pair(3, 40)
    target[1] = policy[1]
    policy[2, 2:], target[2, 2:] = -INF, -INF
    reward = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    reward[0], reward[2, :2] = 0.25, torch.tensor([1.0, -1.0])
    solution = on_chip(policy, target, criterion="snr", reward=reward)
    assert solution.alpha.tolist() == [1, 1, 1]
    assert (on_chip(policy, target, criterion="snr", reward=torch.zeros(3, 40)).alpha == 1).all()


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


EACH = [("chernoff", None), ("kl_budget", 0.1), ("ess", 0.5), ("entropy", 0.3), ("snr", None)]


@pytest.mark.parametrize(("criterion", "value"), [*EACH[:-1], ("kl_budget", 1.5)])
def test_every_pattern_of_support_is_answered_as_by_torch(criterion: str, value: float | None) -> None:
    """Rows of four tokens out of -inf, far, near and likely ones, against float64 without a kernel."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([-INF, -INF, -30.0, -2.0, 0.0, 1.0, 40.0])
    policy, target = levels[torch.randint(len(levels), (2, 30, 4), generator=generator)]
    policy[:, 0], target[:, 3] = 0.0, 0.0
    exact = M.solve_alpha(
        policy.double(), target.double(), criterion=criterion, value=value, tolerance=1e-6  # type: ignore[arg-type]
    )  # fmt: skip
    solution = on_chip(policy, target, criterion=criterion, value=value)
    assert torch.equal(solution.converged, exact.converged)
    assert 5 < solution.converged.sum() < 25
    torch.testing.assert_close(solution.log_q.exp().double(), exact.log_q.exp(), atol=1e-4, rtol=0)
    assert torch.equal(solution.log_q.isfinite(), exact.log_q.isfinite())
    # In a row every alpha of an interval solves to within the tolerance.
    apart = (solution.alpha - exact.alpha).abs()
    assert (apart < 1e-4).sum() >= 29
    for name in ("kl_policy", "kl_target"):
        ours, theirs = getattr(solution, name).double(), getattr(exact, name)
        assert torch.equal(ours.isinf(), theirs.isinf())
        # A KL moves by no more than the variance of l as alpha does.
        assert ((ours - theirs).nan_to_num().abs() <= 1e-4 + 1e-5 * theirs + 35**2 * apart).all()
    missed = ~exact.converged
    assert solution.iterations.max() <= 30
    torch.testing.assert_close(
        solution.residual[missed].double(), exact.residual[missed], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_snr_of_every_pattern_is_that_of_torch(seed: int) -> None:
    """Rewards, and rows of six tokens of which each knows some."""
    generator = torch.Generator().manual_seed(seed)
    policy, target = 3 * torch.randn(2, 8, 6, generator=generator)
    policy[:4, :2], target[2:6, 4:], target[7, :5], policy[7, 5] = -INF, -INF, -INF, -INF
    reward = torch.randn(8, 6, generator=generator)
    reward[2, :2] = math.nan  # where nobody looks
    options = {"criterion": "snr", "reward": reward.half() if seed else reward}
    exact = M.solve_alpha(policy.double(), target.double(), **options)  # type: ignore[arg-type]
    solution = on_chip(policy, target, **options)
    assert solution.converged.tolist() == exact.converged.tolist() == [True] * 7 + [False]
    torch.testing.assert_close(solution.alpha.double(), exact.alpha, atol=1e-6, rtol=0)
    torch.testing.assert_close(solution.log_q.double(), exact.log_q, atol=1e-4, rtol=1e-5)
    for name in ("kl_policy", "kl_target"):
        torch.testing.assert_close(
            getattr(solution, name).double(), getattr(exact, name), atol=1e-4, rtol=1e-5
        )
    assert solution.residual[7].item() == INF


@pytest.mark.parametrize(("criterion", "value"), EACH)
def test_extreme_logits_give_no_nan(criterion: str, value: float | None) -> None:
    least = torch.finfo(torch.float32).min
    rows = [([0.0, least], [0.0, 0.0]), ([0.0, least], [least, 0.0]), ([1e4, 0.0], [0.0, 1e4])]
    rows += [([0.0, -1e4], [-1e4, 0.0]), ([88.0, -88.0], [-88.0, -88.0]), ([1e29, 0.0], [0.0, 1e29])]
    policy, target = (torch.tensor([row[k] for row in rows]) for k in (0, 1))
    solution = on_chip(policy, target, criterion=criterion, value=value)
    for number in NUMBERS:
        assert not getattr(solution, number).isnan().any()
    torch.testing.assert_close(solution.log_q[:5].exp().sum(-1), torch.ones(5), atol=1e-3, rtol=0)
    if criterion != "chernoff":
        return
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


@pytest.mark.parametrize(("criterion", "value"), EACH)
def test_one_token_is_every_mixture(criterion: str, value: float | None) -> None:
    policy, target = torch.tensor([[3.0]]), torch.tensor([[-1.0]])
    solution = on_chip(policy, target, criterion=criterion, value=value)
    exact = M.solve_alpha(policy, target, criterion=criterion, value=value)  # type: ignore[arg-type]
    for number in (*NUMBERS, "converged"):
        torch.testing.assert_close(getattr(solution, number), getattr(exact, number), atol=1e-7, rtol=0)


def test_the_rest_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gpu, "solve_root")
    policy, target = pair(2, 20, scale=1.0)
    on_chip(policy.double(), target)
    with pytest.raises(NameError):
        on_chip(policy, target)
    M.solve_alpha(policy, target)  # a tensor on the CPU


COMPILE = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from klent.mixture.triton_roots import solve_root
from klent.mixture.triton_snr import solve_snr

criterion = sys.argv[1]
kernel = solve_snr if criterion.startswith("snr") else solve_root
own = dict(REWARD=criterion == "snr of a reward") if kernel is solve_snr else dict(CRITERION=criterion)
# large rows as the launcher sends them, and the smallest: numbers that are 1 become constants
for capability, policy, block, warps, ones in (
    (90, "*bf16", 512 if kernel is solve_snr else 2048, 16, {}),
    (80, "*fp32", 32, 1, dict.fromkeys(("policy_stride", "target_stride", "size", "rows"), 1)),
):
    types = dict(policy=policy, policy_stride="i32", target="*fp32", target_stride="i32")
    if kernel is solve_snr:
        types |= dict(reward="*fp16", reward_stride="i32")
    types |= dict(log_q="*fp32", numbers="*fp32", rows="i32", size="i32")
    if kernel is solve_root:
        types |= dict(tolerance="fp32", eps="fp32", value="fp32")
    constants = own | dict(LIMIT=60, BLOCK=block) | ones
    source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    target = GPUTarget("cuda", capability, 32)
    assert triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]
"""


@pytest.mark.skipif(importlib.util.find_spec("triton.backends.nvidia") is None, reason="Triton without CUDA")
@pytest.mark.parametrize("criterion", ["chernoff", "kl_budget", "ess", "entropy", "snr", "snr of a reward"])
def test_the_kernels_compile_for_a_gpu(criterion: str, tmp_path: Path) -> None:
    """Types and shapes that the interpreter does not look at; compiling needs no GPU."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, criterion]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""The mixture of every row on a GPU: one program solves a row from its first sweep to its log-probabilities.

Nothing of ``[R, V]`` but log q is ever written, no number goes back to the host before the end, and a row
stops when it is solved. The first ``BLOCK`` tokens of both rows stay in registers, which is the whole row for
small vocabularies; the rest is swept from the second-level cache, where the rows of the programs at work lie
unless they are very many. Logits are read in their own dtype; sums are float32.

Two criteria are one equation in s = 1 - alpha whose value and slope come out of the same sweep: ``chernoff``
and ``kl_budget``. The others, and float64, are solved by plain torch on the GPU.

With TRITON_INTERPRET=1 in the environment the kernel runs on a CPU, slowly. That is how it is tested: its
numbers are checked in the interpreter only, on a GPU it has been neither run nor timed.
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

CRITERIA = ("chernoff", "kl_budget")
BLOCK = 8192  # tokens that one step holds: 16 of each row for every thread
FLOOR = tl.constexpr(-1e30)  # logits below it are probability 0, as -inf is
_SWEEPS = 60
_EPS = torch.finfo(torch.float32).eps


def solve_on_chip(
    policy: Tensor,
    target: Tensor,
    log_q: Tensor,
    numbers: Tensor,
    criterion: str,
    value: float,
    tolerance: float,
) -> None:
    """Fill ``log_q`` ``[R, V]`` float32 and ``numbers`` ``[R, 6]``: what :func:`solve_alpha` says of a row.

    Args:
        policy, target: ``[R, V]``, float32, float16 or bfloat16, not necessarily alike.
        log_q: contiguous.
        numbers: alpha, KL to the policy and to the target, sweeps, converged, residual.
        criterion: one of ``CRITERIA``.
        value: nats, of ``kl_budget``.
        tolerance: as of ``solve_alpha``.
    """
    rows, size = policy.shape
    if rows == 0:
        return
    policy, target = (x if x.stride(1) == 1 else x.contiguous() for x in (policy, target))
    block = min(triton.next_power_of_2(size), BLOCK)
    warps = min(max(block // 512, 1), 16)
    results = torch.empty(rows, 6, device=policy.device)
    with torch.cuda.device_of(policy):
        _solve[(rows,)](
            policy, policy.stride(0), target, target.stride(0), log_q, results, size, tolerance, _EPS, value,
            BUDGET=criterion == "kl_budget", LIMIT=_SWEEPS, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    numbers.copy_(results)


@triton.jit
def _load(row, first, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = first + tl.arange(0, BLOCK)
    x = tl.load(row + columns, mask=columns < size, other=FLOOR).to(tl.float32)
    return tl.maximum(x, FLOOR)


@triton.jit
def _add_mass(x, top, total):  # type: ignore[no-untyped-def]
    """A block of logits into their running maximum and Σ exp."""
    higher = tl.maximum(top, tl.max(x, axis=0))
    mass = tl.where(x > FLOOR, tl.exp(x - higher), 0.0)
    return higher, total * tl.exp(top - higher) + tl.sum(mass, axis=0)


@triton.jit
def _count(x, y, shared, only_policy, only_target):  # type: ignore[no-untyped-def]
    """Tokens of a block that both rows have, and those that only one of them has."""
    p, t = (x > FLOOR).to(tl.int32), (y > FLOOR).to(tl.int32)
    shared += tl.sum(p * t, axis=0)
    return shared, only_policy + tl.sum(p * (1 - t), axis=0), only_target + tl.sum(t * (1 - p), axis=0)


@triton.jit
def _mix(x, y, level_x, level_y, s):  # type: ignore[no-untyped-def]
    """log(policy^(1-s)·target^s) of a block, FLOOR where one lacks the token, and l, 0 there."""
    common = (x > FLOOR) & (y > FLOOR)
    gap = tl.where(common, (y - level_y) - (x - level_x), 0.0)
    return tl.where(common, (x - level_x) + s * gap, FLOOR), gap


@triton.jit
def _add_moments(x, y, level_x, level_y, s, top, total, first, second):  # type: ignore[no-untyped-def]
    """A block into the running maximum of the weights' logarithms, and Σ weight·l^k for k = 0, 1, 2."""
    w, gap = _mix(x, y, level_x, level_y, s)
    higher = tl.maximum(top, tl.max(w, axis=0))
    moved = tl.exp(top - higher)
    weight = tl.where(w > FLOOR, tl.exp(w - higher), 0.0)
    total = total * moved + tl.sum(weight, axis=0)
    weight *= gap
    first = first * moved + tl.sum(weight, axis=0)
    second = second * moved + tl.sum(weight * gap, axis=0)
    return higher, total, first, second


@triton.jit
def _sweep(policy, target, x, y, size, level_x, level_y, s, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """log Z, mean and variance of l at s; the first block is at hand."""
    none, zero = tl.full((), FLOOR, tl.float32), tl.full((), 0.0, tl.float32)
    top, total, first, second = _add_moments(x, y, level_x, level_y, s, none, zero, zero, zero)
    for start in range(BLOCK, size, BLOCK):
        x_block, y_block = _load(policy, start, size, BLOCK), _load(target, start, size, BLOCK)
        top, total, first, second = _add_moments(
            x_block, y_block, level_x, level_y, s, top, total, first, second
        )  # fmt: skip
    mean = first / total
    variance = second / total - mean * mean
    return top + tl.log(total), mean, tl.where(variance > 0, variance, 0.0)


@triton.jit
def _store(numbers, alpha, kl_policy, kl_target, sweeps, solved, residual):  # type: ignore[no-untyped-def]
    tl.store(numbers, alpha)
    tl.store(numbers + 1, kl_policy)
    tl.store(numbers + 2, kl_target)
    tl.store(numbers + 3, sweeps)
    tl.store(numbers + 4, solved.to(tl.float32))
    tl.store(numbers + 5, residual)


@triton.jit
def _solve(  # type: ignore[no-untyped-def]
    policy, policy_stride, target, target_stride, log_q, numbers, size, tolerance, eps, value,
    BUDGET: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    policy += row * policy_stride
    target += row * target_stride
    log_q += row * size
    x, y = _load(policy, 0, size, BLOCK), _load(target, 0, size, BLOCK)
    none, zero = tl.full((), FLOOR, tl.float32), tl.full((), 0.0, tl.float32)
    top_x, mass_x = _add_mass(x, none, zero)
    top_y, mass_y = _add_mass(y, none, zero)
    shared, only_policy, only_target = _count(x, y, 0, 0, 0)
    for start in range(BLOCK, size, BLOCK):
        x_block, y_block = _load(policy, start, size, BLOCK), _load(target, start, size, BLOCK)
        top_x, mass_x = _add_mass(x_block, top_x, mass_x)
        top_y, mass_y = _add_mass(y_block, top_y, mass_y)
        shared, only_policy, only_target = _count(x_block, y_block, shared, only_policy, only_target)
    level_x, level_y = top_x + tl.log(mass_x), top_y + tl.log(mass_y)

    # An end that lies within the other's support is on its side of the root and need not be tried.
    low, high, s, at = zero, zero + 1, zero + 0.5, zero
    tried_low = only_policy == 0
    tried_high = (only_target == 0) & (not BUDGET)
    sweeps, done = 1, shared == 0
    log_z, mean, residual, wanted, allowed = zero, zero, zero + float("inf"), zero, zero
    while (sweeps < LIMIT) & (not done):
        at = s
        log_z, mean, variance = _sweep(policy, target, x, y, size, level_x, level_y, at, BLOCK)
        left, reach = mean, zero + 1
        if BUDGET:
            left, reach = at * mean - log_z - value, at
        slope = reach * variance
        if sweeps == 1:
            wanted = tolerance * tl.maximum(tl.sqrt(variance), 1.0)
        sweeps += 1
        # what rounding of s, and of the sums, amounts to here comes on top
        allowed = wanted + eps * reach * (variance + 8 * tl.sqrt(variance + mean * mean))
        residual = tl.abs(left)
        done = (residual <= allowed) | ((at == 0) & (left >= 0)) | ((at == 1) & (left <= 0))
        tried_low |= at == 0
        tried_high |= at == 1
        low, high = tl.where(left < 0, at, low), tl.where(left < 0, high, at)
        # Newton's step; where it leaves the bracket the end of [0, 1], once, and else the middle
        s = at - left / tl.where(slope > 0, slope, 1e-30)
        middle = (low + high) / 2
        s = tl.where(s <= low, tl.where((low == 0) & (not tried_low), 0.0, middle), s)
        s = tl.where(s >= high, tl.where((high == 1) & (not tried_high), 1.0, middle), s)

    # The policy itself, where the two share no token, or tokens that only it has rule out any mixture.
    itself = shared == 0
    if BUDGET:
        itself |= (at == 0) & (only_policy > 0)
    kl_policy = tl.where(itself, 0.0, tl.maximum(at * mean - log_z, 0.0))
    kl_target = tl.where(itself, float("inf"), tl.maximum(-(1 - at) * mean - log_z, 0.0))
    solved = (residual <= allowed) & (not itself)
    _store(numbers + row * 6, 1 - at, kl_policy, kl_target, sweeps, solved, residual)
    _write(log_q, x, y, 0, size, level_x, level_y, at, log_z, itself, BLOCK)
    for start in range(BLOCK, size, BLOCK):
        x_block, y_block = _load(policy, start, size, BLOCK), _load(target, start, size, BLOCK)
        _write(log_q, x_block, y_block, start, size, level_x, level_y, at, log_z, itself, BLOCK)


@triton.jit
def _write(log_q, x, y, start, size, level_x, level_y, s, log_z, itself, BLOCK: tl.constexpr):  # type: ignore
    columns = start + tl.arange(0, BLOCK)
    w, _ = _mix(x, y, level_x, level_y, s)
    w = tl.where(itself, x - level_x, w - log_z)
    present = (x > FLOOR) & (itself | (y > FLOOR))
    tl.store(log_q + columns, tl.where(present, w, float("-inf")), mask=columns < size)

"""Where an equation in s = 1 - alpha is met, on a GPU: one program solves a row.

    chernoff    E_q[l] = 0
    kl_budget   KL(q ‖ policy) = value
    ess         log Z(s) + log Z(-s) = -log value
    entropy     H(q) = value, between the first two points of a grid that enclose it

Value and slope come out of one sweep. Newton's steps stay inside a bracket, whose middle takes over where they do
not; an end of [0, 1] is tried when a step leaves the bracket there.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from klent.mixture.triton_rows import ends, store, sweep, write

INTERVALS = tl.constexpr(16)  # of the grid
AT_ONCE = tl.constexpr(4)  # its points that one sweep computes
NUMBERS = tl.constexpr(32)  # a power of 2 that holds all points


@triton.jit
def solve_root(  # type: ignore[no-untyped-def]
    policy, policy_stride, target, target_stride, log_q, numbers, rows, size, tolerance, eps, value,
    CRITERION: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row; ``value`` is the logarithm of the criterion's for ``ess``."""
    row = tl.program_id(0).to(tl.int64)
    policy += row * policy_stride
    target += row * target_stride
    top_x, log_x, top_y, log_y, shared, only_x, only_y = ends(policy, target, size, BLOCK, tl.float32)

    # A bracket of the root. An end that lies within the other's support is on its side and need not be tried.
    zero = tl.full((), 0.0, tl.float64)
    low, high, s, sign, wanted = zero, zero + 1, zero + 0.5, zero + 1, zero
    try_low, try_high = only_x, (only_y if CRITERION == "chernoff" else shared)
    done, once, sweeps = ~shared, ~shared, tl.full((), 1, tl.int32)
    if CRITERION == "ess":
        done |= only_x
    if CRITERION == "entropy":
        _, _, _, mean, variance = _look(
            policy, target, size, top_x, log_x, top_y, log_y, s, value, CRITERION, BLOCK
        )  # fmt: skip
        wanted = tolerance * tl.maximum(tl.sqrt(variance), 1.0)
        low, high, sign, s, once = _first_crossing(
            policy, target, size, top_x, log_x, top_y, log_y, value,
            wanted + eps * (variance + 8 * tl.sqrt(variance + mean * mean)), BLOCK,
        )  # fmt: skip
        sweeps += 1 + tl.cdiv(INTERVALS + 1, AT_ONCE)

    at, log_z, mean, residual, allowed = zero, zero, zero, zero + float("inf"), zero
    while (sweeps < LIMIT) & ~done:
        at = s.to(tl.float32).to(tl.float64)
        left, slope, log_z, mean, variance = _look(
            policy, target, size, top_x, log_x, top_y, log_y, at, value, CRITERION, BLOCK
        )  # fmt: skip
        left, slope = sign * left, sign * slope
        if sweeps == 1:  # never for entropy
            wanted = tolerance * tl.maximum(tl.sqrt(variance), 1.0)
        sweeps += 1
        # what rounding of s, and of the sums, amounts to here comes on top
        size_l = tl.sqrt(variance + mean * mean) * (at if CRITERION == "kl_budget" else 1.0)
        allowed = wanted + eps * (tl.abs(slope) + 8 * size_l)
        residual = tl.abs(left)
        done = (residual <= allowed) | ((at == 0) & (left >= 0)) | ((at == 1) & (left <= 0)) | once
        try_low, try_high = try_low & (at > 0), try_high & (at < 1)
        low, high = tl.where(left < 0, at, low), tl.where(left < 0, high, at)
        s = _step(at, left, slope, low, high, try_low, try_high)
        if CRITERION == "ess":
            s = tl.where(value >= 0, 0.0, s)  # all of the samples

    # The policy itself, where the two share no token, or tokens that only it has rule out any mixture.
    itself = ~shared
    if CRITERION == "kl_budget" or CRITERION == "ess":
        itself |= (at == 0) & only_x
    kl_policy = tl.where(itself, 0.0, at * mean - log_z)
    kl_target = tl.where(itself, float("inf"), -(1 - at) * mean - log_z)
    solved = (residual <= allowed) & ~itself
    store(numbers + row, rows, 1 - at, kl_policy, kl_target, sweeps, solved, residual)
    write(log_q + row * size, policy, target, size, top_x, log_x, top_y, log_y, at, log_z, itself, BLOCK)


@triton.jit
def _step(at, left, slope, low, high, try_low, try_high):  # type: ignore[no-untyped-def]
    """Newton's step from ``at``; if it leaves the bracket, an end of [0, 1] that is to be tried, else the middle."""
    s = at - left / tl.where(slope > 0, slope, 1e-30)
    end = tl.where(left < 0, high, low)
    untried = ((left < 0) & try_high & (high == 1)) | ((left >= 0) & try_low & (low == 0))
    return tl.where((s > low) & (s < high), s, tl.where(untried, end, (low + high) / 2))


@triton.jit
def _look(  # type: ignore[no-untyped-def]
    policy, target, size, top_x, log_x, top_y, log_y, s, value, CRITERION: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The equation's left side and its slope at s, and log Z, mean and variance of l."""
    there = 1 - 2 * tl.arange(0, 2 if CRITERION == "ess" else 1)  # s, and -s for ess
    log_z, mean, variance, entropy, bend = sweep(
        policy, target, size, top_x, log_x, top_y, log_y, (s * there).to(tl.float32)[:, None], BLOCK
    )  # fmt: skip
    left, slope = tl.sum(log_z, axis=0) + value, tl.sum(mean * there, axis=0)  # of ess
    log_z = tl.sum(tl.where(there > 0, log_z, 0.0), axis=0)
    mean = tl.sum(tl.where(there > 0, mean, 0.0), axis=0)
    variance = tl.sum(tl.where(there > 0, variance, 0.0), axis=0)
    if CRITERION == "chernoff":
        left, slope = mean, variance
    if CRITERION == "kl_budget":
        left, slope = s * mean - log_z - value, s * variance
    if CRITERION == "entropy":
        left, slope = tl.sum(entropy, axis=0) - value, tl.sum(bend, axis=0)
    return left, slope, log_z, mean, variance


@triton.jit
def _first_crossing(  # type: ignore[no-untyped-def]
    policy, target, size, top_x, log_x, top_y, log_y, value, allowed, BLOCK: tl.constexpr
):  # fmt: skip
    """The interval of the grid where the entropy crosses ``value`` first: both ends, +1 where it rises there and
    -1 where it falls, and where to start. Without a crossing the point that misses least, and True."""
    index = tl.arange(0, NUMBERS)
    here, after = tl.zeros([NUMBERS], tl.float64), tl.zeros([NUMBERS], tl.float64)
    for first in range(0, INTERVALS + 1, AT_ONCE):
        k = first + tl.arange(0, AT_ONCE)
        _, _, _, entropy, _ = sweep(
            policy, target, size, top_x, log_x, top_y, log_y, (k / INTERVALS)[:, None], BLOCK
        )  # fmt: skip
        left = (entropy - value)[:, None]
        here += tl.sum(tl.where(k[:, None] == index, left, 0.0), axis=0)
        after += tl.sum(tl.where(k[:, None] == index + 1, left, 0.0), axis=0)
    crosses = (here * after <= 0) & (index < INTERVALS)
    interval = tl.min(tl.where(crosses, index, INTERVALS), axis=0)
    missed = tl.where(index <= INTERVALS, tl.abs(here), float("inf"))
    best = tl.min(tl.where(missed <= tl.min(missed, axis=0) + allowed, index, NUMBERS), axis=0)
    low = (interval / INTERVALS).to(tl.float64)
    high = ((interval + 1) / INTERVALS).to(tl.float64)
    at_low = tl.sum(tl.where(index == interval, here, 0.0), axis=0)
    at_high = tl.sum(tl.where(index == interval, after, 0.0), axis=0)
    flat = (tl.abs(at_low) <= allowed) & (tl.abs(at_high) <= allowed)
    s = tl.where(flat | (at_low * at_high < 0), (low + high) / 2, tl.where(at_low == 0, low, high))
    none = interval == INTERVALS
    s = tl.where(none, (best / INTERVALS).to(tl.float64), s)
    return low, high, tl.where(at_low <= at_high, 1.0, -1.0).to(tl.float64), s, none

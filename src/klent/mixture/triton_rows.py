"""Rows of logits in a kernel: how they are read and written, and what one sweep over a pair of them computes.

While a program reads a row, each element of a block keeps a running sum of its own, with a running maximum as
its scale. The sums become one number after the last block only: nothing waits for other threads before. Numbers
of a token are float32, those of a row float64.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

FLOOR = tl.constexpr(-1e30)  # logits below it are probability 0, as -inf is


@triton.jit
def load(row, start, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of logits, FLOOR beyond the row."""
    columns = start + tl.arange(0, BLOCK)
    x = tl.load(row + columns, mask=columns < size, other=FLOOR).to(tl.float32)
    return tl.maximum(x, FLOOR)


@triton.jit
def ends(policy, target, size, BLOCK: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each row the largest logit and log Σ exp of what they are less it; which kinds of tokens there are.

    Kinds: tokens of both rows, tokens of the policy alone, tokens of the target alone.
    """
    top_x, top_y = tl.full([BLOCK], FLOOR, TYPE), tl.full([BLOCK], FLOOR, TYPE)
    mass_x, mass_y = tl.zeros([BLOCK], TYPE), tl.zeros([BLOCK], TYPE)
    kinds = tl.zeros([BLOCK], tl.int32)
    for start in range(0, size, BLOCK):
        x, y = load(policy, start, size, BLOCK), load(target, start, size, BLOCK)
        has_x, has_y = x > FLOOR, y > FLOOR
        kinds |= tl.where(has_x & has_y, 1, 0)
        kinds |= tl.where(has_x & ~has_y, 2, 0) | tl.where(has_y & ~has_x, 4, 0)
        top_x, mass_x = _add(x.to(TYPE), has_x, top_x, mass_x)
        top_y, mass_y = _add(y.to(TYPE), has_y, top_y, mass_y)
    high_x, high_y = tl.max(top_x, axis=0), tl.max(top_y, axis=0)
    log_x = tl.log(tl.sum(mass_x * tl.exp(top_x - high_x), axis=0).to(tl.float64))
    log_y = tl.log(tl.sum(mass_y * tl.exp(top_y - high_y), axis=0).to(tl.float64))
    shared, only_x, only_y = tl.max(kinds & 1, axis=0), tl.max(kinds & 2, axis=0), tl.max(kinds & 4, axis=0)
    return high_x, log_x, high_y, log_y, shared > 0, only_x > 0, only_y > 0


@triton.jit
def _add(x, present, top, mass):  # type: ignore[no-untyped-def]
    higher = tl.maximum(top, x)
    return higher, mass * tl.exp(top - higher) + tl.where(present, tl.exp(x - higher), 0.0)


@triton.jit
def mix(x, y, top_x, top_y, s):  # type: ignore[no-untyped-def]
    """log(policy^(1-s)·target^s), and l, both up to a constant of the row; FLOOR and 0 where one lacks the token."""
    common = (x > FLOOR) & (y > FLOOR)
    gap = tl.where(common, (y - top_y) - (x - top_x), 0.0)
    return tl.where(common, (x - top_x) + s * gap, FLOOR), gap


@triton.jit
def sweep(policy, target, size, top_x, log_x, top_y, log_y, points, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """What ``Family.sweep`` computes, at each of ``points`` ``[K, 1]`` float32: five numbers ``[K]`` float64.

    log Z, mean and variance of l, entropy and its slope.
    """
    top = tl.full([points.shape[0], BLOCK], FLOOR, tl.float32)
    total = tl.zeros_like(top)
    first, second = total, total  # Σ weight·l, Σ weight·l²
    # with u, the logarithm of a weight less the running maximum: Σ weight·u, Σ weight·l·u
    depth, both = total, total
    for start in range(0, size, BLOCK):
        x, y = load(policy, start, size, BLOCK), load(target, start, size, BLOCK)
        w, gap = mix(x[None, :], y[None, :], top_x, top_y, points)
        higher = tl.maximum(top, w)
        down, u = top - higher, w - higher
        moved, weight = tl.exp(down), tl.where(w > FLOOR, tl.exp(u), 0.0)
        depth = moved * (depth + down * total) + weight * u
        both = moved * (both + down * first) + weight * gap * u
        total = moved * total + weight
        first = moved * first + weight * gap
        second = moved * second + weight * gap * gap
        top = higher
    highest = tl.max(top, axis=1)
    down = top - highest[:, None]
    moved = tl.exp(down)
    depth = tl.sum(moved * (depth + down * total), axis=1).to(tl.float64)
    both = tl.sum(moved * (both + down * first), axis=1).to(tl.float64)
    total = tl.maximum(tl.sum(moved * total, axis=1), 1e-37).to(tl.float64)  # 0 where no token is shared
    mean = tl.sum(moved * first, axis=1).to(tl.float64) / total
    variance = tl.sum(moved * second, axis=1).to(tl.float64) / total - mean * mean
    depth /= total
    s = tl.sum(points.to(tl.float64), axis=1)
    log_z = highest.to(tl.float64) + tl.log(total) - (log_x + s * (log_y - log_x))
    slope = mean * depth - both / total
    return log_z, mean + log_x - log_y, tl.maximum(variance, 0.0), tl.log(total) - depth, slope


@triton.jit
def store(numbers, rows, alpha, kl_policy, kl_target, sweeps, solved, residual):  # type: ignore[no-untyped-def]
    """A row's numbers into ``[6, rows]``."""
    tl.store(numbers, alpha)
    tl.store(numbers + rows, tl.maximum(kl_policy, 0.0))
    tl.store(numbers + 2 * rows, tl.maximum(kl_target, 0.0))
    tl.store(numbers + 3 * rows, sweeps)
    tl.store(numbers + 4 * rows, solved)
    tl.store(numbers + 5 * rows, residual)


@triton.jit
def write(log_q, policy, target, size, top_x, log_x, top_y, log_y, s, log_z, itself, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """log q of the whole row; of the policy where it is the mixture ``itself``."""
    level = tl.where(itself, log_x, log_z + log_x + s * (log_y - log_x)).to(tl.float32)
    for start in range(0, size, BLOCK):
        x, y = load(policy, start, size, BLOCK), load(target, start, size, BLOCK)
        w, _ = mix(x, y, top_x, top_y, s)
        present = (x > FLOOR) & (itself | (y > FLOOR))
        w = tl.where(itself, x - top_x, w) - level
        columns = start + tl.arange(0, BLOCK)
        tl.store(log_q + columns, tl.where(present, w, float("-inf")), mask=columns < size)

"""The mixture with the largest signal-to-noise ratio, on a GPU: one program searches a row, in float64.

    f(s) = S/√N        S = Σ (target - policy)·w·r        N = Σ policy·(w·r - Σ policy·w·r)²        w = exp(-s·l)

A grid of 33 points says where f is largest. Between the points beside that one Newton's method finds where f' is 0:
at its maximum f is too flat to be compared, while f' is not.

A common factor of the weights changes nothing: w is 1 for the policy's most likely token. Sums are over w·r less
that token's, so that nothing cancels where it has nearly all of the probability.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from klent.mixture.triton_rows import FLOOR, ends, load, store, sweep, write

INTERVALS = tl.constexpr(32)  # of the grid
AT_ONCE = tl.constexpr(8)  # its points that one sweep computes
NUMBERS = tl.constexpr(64)  # a power of 2 that holds all points
TIE = tl.constexpr(1e-9)  # values that differ by less are equal but for rounding
NOTHING = tl.constexpr(1e-12)  # what rounding may leave of a difference that is 0
WIDTH = tl.constexpr(3e-8)  # of the last step, in s
MOST = tl.constexpr(1e130)  # a weight; its square can still be summed


@triton.jit
def solve_snr(  # type: ignore[no-untyped-def]
    policy, policy_stride, target, target_stride, reward, reward_stride, log_q, numbers, rows, size,
    REWARD: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row; without ``REWARD`` r is l."""
    row = tl.program_id(0).to(tl.int64)
    policy += row * policy_stride
    target += row * target_stride
    reward += row * reward_stride
    top_x, log_x, top_y, log_y, shared, only_x, only_y = ends(policy, target, size, BLOCK, tl.float64)
    level_x, level_y = top_x + log_x, top_y + log_y
    gap_0, r_0, p_sum, t_sum = _likeliest(
        policy, target, reward, size, level_x, level_y, only_x, only_y, REWARD, BLOCK
    )  # fmt: skip
    s = _best_of_grid(
        policy, target, reward, size, level_x, level_y, gap_0, r_0, p_sum, t_sum, REWARD, BLOCK
    )  # fmt: skip
    low, high = tl.maximum(s - 1.0 / INTERVALS, 0.0), tl.minimum(s + 1.0 / INTERVALS, 1.0)
    sweeps = tl.full((), 2 + (INTERVALS + AT_ONCE) // AT_ONCE, tl.int32)
    done, residual = ~shared, tl.full((), float("inf"), tl.float64)
    while (sweeps < LIMIT) & ~done:
        left, slope, flat = _derivative(
            policy, target, reward, size, level_x, level_y, gap_0, r_0, p_sum, t_sum, s, REWARD, BLOCK
        )  # fmt: skip
        sweeps += 1
        low, high = tl.where(left > 0, s, low), tl.where(left > 0, high, s)
        turn = s - left / tl.where(slope < 0, slope, -1e-300)
        turn = tl.where((turn > low) & (turn < high), turn, (low + high) / 2)
        turn = tl.where(flat, s, turn)
        residual = tl.abs(turn - s)
        done = residual <= WIDTH
        s = turn

    s = tl.where(shared, s, 0.0).to(tl.float32).to(tl.float64)
    points = (s + tl.zeros([1, 1], tl.float64)).to(tl.float32)
    top_x, top_y = top_x.to(tl.float32), top_y.to(tl.float32)
    log_z, mean, _, _, _ = sweep(policy, target, size, top_x, log_x, top_y, log_y, points, BLOCK)
    log_z, mean = tl.sum(log_z, axis=0), tl.sum(mean, axis=0)
    kl_policy = tl.where(shared, s * mean - log_z, 0.0)
    kl_target = tl.where(shared, -(1 - s) * mean - log_z, float("inf"))
    store(numbers + row, rows, 1 - s, kl_policy, kl_target, sweeps + 1, shared, residual)
    write(log_q + row * size, policy, target, size, top_x, log_x, top_y, log_y, s, log_z, ~shared, BLOCK)


@triton.jit
def _tokens(  # type: ignore[no-untyped-def]
    policy, target, reward, start, size, level_x, level_y, REWARD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Probabilities, l and r of a block, 0 where one of the two lacks the token."""
    x, y = load(policy, start, size, BLOCK), load(target, start, size, BLOCK)
    common = (x > FLOOR) & (y > FLOOR)
    log_p, log_t = x.to(tl.float64) - level_x, y.to(tl.float64) - level_y
    gap = tl.where(common, log_t - log_p, 0.0)
    r = gap
    if REWARD:
        columns = start + tl.arange(0, BLOCK)
        r = tl.load(reward + columns, mask=columns < size, other=0.0).to(tl.float64)
        r = tl.where(common, r, 0.0)
    return tl.where(common, tl.exp(log_p), 0.0), tl.where(common, tl.exp(log_t), 0.0), gap, r


@triton.jit
def _likeliest(  # type: ignore[no-untyped-def]
    policy, target, reward, size, level_x, level_y, only_x, only_y, REWARD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """l and r of the common token that is likeliest for the policy; both probabilities of all common tokens."""
    most, gap_0 = tl.full([BLOCK], -1.0, tl.float64), tl.zeros([BLOCK], tl.float64)
    r_0, p_sum, t_sum = gap_0, gap_0, gap_0
    for start in range(0, size, BLOCK):
        p, t, gap, r = _tokens(policy, target, reward, start, size, level_x, level_y, REWARD, BLOCK)
        gap_0, r_0 = tl.where(p > most, gap, gap_0), tl.where(p > most, r, r_0)
        most = tl.maximum(most, p)
        p_sum += p
        t_sum += t
    likeliest = tl.argmax(most, axis=0) == tl.arange(0, BLOCK)
    gap_0 = tl.sum(tl.where(likeliest, gap_0, 0.0), axis=0)
    r_0 = tl.sum(tl.where(likeliest, r_0, 0.0), axis=0)
    p_sum = tl.where(only_x, tl.sum(p_sum, axis=0), 1.0)
    return gap_0, r_0, p_sum, tl.where(only_y, tl.sum(t_sum, axis=0), 1.0)


@triton.jit
def _best_of_grid(  # type: ignore[no-untyped-def]
    policy, target, reward, size, level_x, level_y, gap_0, r_0, p_sum, t_sum,
    REWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The smallest of the points where f is largest."""
    index, near = tl.arange(0, NUMBERS), tl.arange(0, AT_ONCE)
    values = tl.zeros([NUMBERS], tl.float64)
    for first in range(0, INTERVALS + 1, AT_ONCE):
        signal = tl.zeros([AT_ONCE, BLOCK], tl.float64)
        mean, square = signal, signal
        for start in range(0, size, BLOCK):
            p, t, gap, r = _tokens(policy, target, reward, start, size, level_x, level_y, REWARD, BLOCK)
            # w of the first point; from one to the next it changes by another factor
            w = tl.exp((gap_0 - gap) * (first / INTERVALS))[None, :]
            factor = tl.exp((gap_0 - gap) * (1.0 / INTERVALS))
            w = tl.where((near & 1)[:, None] > 0, w * factor[None, :], w)
            factor *= factor
            w = tl.where((near & 2)[:, None] > 0, w * factor[None, :], w)
            factor *= factor
            w = tl.where((near & 4)[:, None] > 0, w * factor[None, :], w)
            centred = tl.minimum(w, MOST) * r[None, :] - r_0
            signal += centred * (t - p)[None, :]
            mean += centred * p[None, :]
            square += centred * centred * p[None, :]
        signal = tl.sum(signal, axis=1) + r_0 * (t_sum - p_sum)
        mean, square = tl.sum(mean, axis=1), tl.sum(square, axis=1)
        whole = mean + r_0 * (p_sum - 1)  # the mean less r_0: w·r is 0 for tokens that the target lacks
        noise = square - 2 * whole * mean + whole * whole * p_sum
        f = tl.where(noise > square * NOTHING, signal / tl.sqrt(tl.maximum(noise, 1e-300)), 0.0)
        values += tl.sum(tl.where((first + near)[:, None] == index, f[:, None], 0.0), axis=0)
    values = tl.where(index <= INTERVALS, values, float("-inf"))
    largest = tl.max(values, axis=0)
    best = tl.min(tl.where(values >= largest - tl.abs(largest) * TIE, index, NUMBERS), axis=0)
    return (best / INTERVALS).to(tl.float64)


@triton.jit
def _derivative(  # type: ignore[no-untyped-def]
    policy, target, reward, size, level_x, level_y, gap_0, r_0, p_sum, t_sum, s,
    REWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """f'·N^1.5 = S'·N - S·N'/2 and its derivative, and whether it is 0 but for rounding."""
    signal = tl.zeros([BLOCK], tl.float64)
    signal_1, signal_2, mean, mean_1, mean_2 = signal, signal, signal, signal, signal
    square, square_1, square_2 = signal, signal, signal
    for start in range(0, size, BLOCK):
        p, t, gap, r = _tokens(policy, target, reward, start, size, level_x, level_y, REWARD, BLOCK)
        drop = gap_0 - gap
        x = tl.minimum(tl.exp(s * drop), MOST) * r
        x_1, centred = x * drop, x - r_0
        x_2 = x_1 * drop
        signal += (t - p) * centred
        signal_1 += (t - p) * x_1
        signal_2 += (t - p) * x_2
        mean += p * centred
        mean_1 += p * x_1
        mean_2 += p * x_2
        square += p * centred * centred
        square_1 += p * centred * x_1
        square_2 += p * (x_1 * x_1 + centred * x_2)
    signal = tl.sum(signal, axis=0) + r_0 * (t_sum - p_sum)
    signal_1, signal_2 = tl.sum(signal_1, axis=0), tl.sum(signal_2, axis=0)
    mean, mean_1, mean_2 = tl.sum(mean, axis=0), tl.sum(mean_1, axis=0), tl.sum(mean_2, axis=0)
    square = tl.sum(square, axis=0)
    whole = mean + r_0 * (p_sum - 1)
    noise = square - 2 * whole * mean + whole * whole * p_sum
    inner = mean + whole * (1 - p_sum)
    noise_1 = 2 * (tl.sum(square_1, axis=0) - inner * mean_1)
    noise_2 = 2 * (tl.sum(square_2, axis=0) - inner * mean_2 - (2 - p_sum) * mean_1 * mean_1)
    left = signal_1 * noise - signal * noise_1 / 2
    slope = signal_2 * noise + signal_1 * noise_1 / 2 - signal * noise_2 / 2
    terms = tl.abs(signal_1) * noise + tl.abs(signal * noise_1) / 2
    return left, slope, (tl.abs(left) <= terms * NOTHING) | ~(noise > square * NOTHING)

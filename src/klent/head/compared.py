"""Log-probability, entropy and reverse KL to another model from one sweep over both vocabularies.

``token_stats`` and ``token_divergence`` after it compute the policy's logits five times and the other model's
three times. Together two and two are enough, and the products that carry the gradient are shared: for each tile
``z`` of the policy and ``y`` of the other model, in bits,

    s = Σ 2^(z - m)      u = Σ 2^(z - m) (z - m)      x = Σ 2^(z - m) (z - y)      r = Σ 2^(y - n)
    KL = x/s - (m + log s) + (n + log r)

    dL/dz_v = c ([v = target] - p_v) - e p_v (log p_v + H) + k p_v (log p_v - log q_v - KL)

with ``k = dL/dKL``. The other model receives no gradient.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from klent.head.autograd import Context, check_first_derivative
from klent.head.chunked import TILE_COLUMNS, TILE_ROWS, Tiles, blocks, fold, locate
from klent.head.products import product
from klent.head.stats import FLOOR, NATS, Head, LogitTransform

__all__ = ["ComparedStats", "comparable", "token_stats_and_kl"]


class ComparedStats(NamedTuple):
    """Numbers per token, nats, ``[N]`` each; all three carry a gradient."""

    logp: Tensor
    """Log-probability of the target."""
    entropy: Tensor
    """Entropy of the policy's distribution."""
    kl: Tensor
    """KL(policy ‖ other) of the two distributions."""


def comparable(policy: Head, other: Head) -> bool:
    """Whether :func:`token_stats_and_kl` computes these two: one vocabulary, and no token taken out of it."""
    return len(policy.weight) == len(other.weight) and policy.bias is None and other.bias is None


def token_stats_and_kl(policy: Head, target: Tensor, other: Head) -> ComparedStats:
    """``token_stats`` of a policy and its exact reverse KL to another model, tile by tile.

    Args:
        policy: hidden states ``[N, H]`` and head of the policy, without a bias. ``hidden`` and ``weight`` receive
            gradients.
        target: token ids, ``[N]`` int64.
        other: the same rows under the other model, any width; the same vocabulary. Receives no gradient.

    Returns:
        Float32 (float64 for float64 inputs), differentiable once.

    Raises:
        ValueError: rows or vocabularies differ, or a head has a bias: use ``token_stats`` and
            :func:`klent.head.divergence.token_divergence`, which take these.

    Example:
        >>> import math
        >>> hidden = torch.tensor([[1.0]])
        >>> policy = Head(hidden, torch.tensor([[0.0], [0.0]]))
        >>> other = Head(hidden, torch.tensor([[0.0], [math.log(3.0)]]))
        >>> token_stats_and_kl(policy, torch.tensor([1]), other)
        ComparedStats(logp=tensor([-0.6931]), entropy=tensor([0.6931]), kl=tensor([0.1438]))
    """
    if not comparable(policy, other) or len(policy.hidden) != len(other.hidden):
        raise ValueError(
            "policy and other must have the same rows and vocabulary and heads without a bias: got "
            f"{len(policy.hidden)} and {len(other.hidden)} rows, {len(policy.weight)} and {len(other.weight)} "
            "tokens. Use token_stats and token_divergence"
        )
    logp, entropy, kl = _Compared.apply(
        policy.hidden, policy.weight, policy.transform, target.contiguous(), Head(*other)
    )
    return ComparedStats(logp, entropy, kl)


class _Context(Context, Protocol):
    transforms: tuple[LogitTransform, LogitTransform]


class _Compared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, hidden: Tensor, weight: Tensor, transform: LogitTransform, target: Tensor, other: Head
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            sums = _sweep(Head(hidden, weight, None, transform), target, other)
        m, s, u, x, at_target, log_r = sums
        log_s = s.log2()
        mean, kl = u / s, x / s - (m + log_s) + log_r
        ctx.save_for_backward(hidden, weight, target, other.hidden, other.weight, m, s, mean, kl, log_r)
        ctx.transforms = (transform, other.transform)
        ctx.set_materialize_grads(False)
        return ((at_target - m) - log_s) * NATS, (log_s - mean) * NATS, kl * NATS

    @staticmethod
    def backward(
        ctx: _Context, c: Tensor | None, e: Tensor | None, k: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        check_first_derivative("token_stats_and_kl", "there is no second derivative; take it of full logits")
        hidden, weight, target, q_hidden, q_weight, *numbers = ctx.saved_tensors
        given = [torch.zeros_like(numbers[0]) if value is None else value for value in (c, e, k)]
        active = torch.stack([value != 0 for value in given]).any(dim=0).nonzero().squeeze(1)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        if not len(active):
            nothing = [torch.zeros_like(hidden) if wants_hidden else None]
            return *nothing, torch.zeros_like(weight) if wants_weight else None, None, None, None
        per_row = [value.index_select(0, active) for value in (target, *numbers, *given)]
        policy = Head(hidden.index_select(0, active), weight, None, ctx.transforms[0])
        other = Head(q_hidden.index_select(0, active), q_weight, None, ctx.transforms[1])
        with torch.autocast(hidden.device.type, enabled=False):
            dx, dweight = _gradients(policy, other, _Rows(*per_row), wants_hidden, wants_weight)
        dhidden = None if dx is None else torch.zeros_like(hidden).index_copy_(0, active, dx.to(hidden.dtype))
        return dhidden, dweight, None, None, None


def _sweep(policy: Head, target: Tensor, other: Head) -> tuple[Tensor, ...]:
    """``m, s, u, x``, the logit of the target, and ``n + log2 r``, of each row."""
    logits, theirs = Tiles(policy), Tiles(other)
    m = logits.hidden.new_full(target.shape, FLOOR)
    s, u, x, at_target = (torch.zeros_like(m) for _ in range(4))
    n, r = theirs.hidden.new_full(target.shape, FLOOR), torch.zeros_like(theirs.hidden[:, 0])
    for columns in blocks(len(policy.weight), TILE_COLUMNS):
        w, w_theirs = logits.weight_of(columns), theirs.weight_of(columns)
        for rows in blocks(len(target), TILE_ROWS):
            z, y = logits.tile(rows, columns, w)[0], theirs.tile(rows, columns, w_theirs)[0]
            inside, column = locate(target[rows], columns)
            at_target[rows] = torch.where(inside, z.gather(1, column).squeeze(1), at_target[rows])
            apart = z - y
            old = m[rows].clone()
            exp = fold(z, logits.scratch(z), m[rows], s[rows], u[rows])
            x[rows] = x[rows] * (old - m[rows]).exp2() + exp.mul_(apart).sum(1)
            fold(y, theirs.scratch(y), n[rows], r[rows], None)
    return m, s, u, x, at_target, (n + r.log2()).to(m.dtype)


class _Rows(NamedTuple):
    """The rows that need a gradient, ``[N]`` each; logarithms in bits."""

    target: Tensor
    m: Tensor
    s: Tensor
    mean: Tensor
    kl: Tensor
    log_r: Tensor
    c: Tensor
    e: Tensor
    k: Tensor


def _gradients(
    policy: Head, other: Head, rows: _Rows, wants_hidden: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    logits, theirs = Tiles(policy), Tiles(other)
    hidden = logits.hidden
    c, e, k = rows.c * logits.gain, rows.e * (NATS * logits.gain), rows.k * (NATS * logits.gain)
    # p_v = 2^(z - m)/s times a line in (z - m) and in the other's log-probability
    slope = ((k - e) / rows.s).unsqueeze(1)
    against = (k / rows.s).unsqueeze(1)
    level = ((e * rows.mean - c - k * (rows.s.log2() + rows.kl)) / rows.s).unsqueeze(1)
    dhidden = torch.zeros_like(hidden) if wants_hidden else None
    dweight = torch.empty_like(policy.weight) if wants_weight else None
    row_blocks = blocks(len(hidden), TILE_ROWS)
    across = [hidden[block].T.contiguous() for block in row_blocks] if wants_weight else []
    for columns in blocks(len(policy.weight), TILE_COLUMNS):
        w, w_theirs = logits.weight_of(columns), theirs.weight_of(columns)
        dw = None
        for number, block in enumerate(row_blocks):
            z, tanh = logits.tile(block, columns, w)
            log_q = theirs.tile(block, columns, w_theirs)[0].to(z.dtype).sub_(rows.log_r[block, None])
            z.sub_(rows.m[block, None])
            g = torch.exp2(z, out=logits.scratch(z))
            g.mul_(z.mul_(slope[block]).sub_(log_q.mul_(against[block])).add_(level[block]))
            inside, column = locate(rows.target[block], columns)
            g.scatter_add_(1, column, torch.where(inside, c[block], 0.0).unsqueeze(1))
            g = g if tanh is None else g.addcmul_(g, tanh.square_(), value=-1)
            if dhidden is not None:
                dhidden[block] += product(g, w.T)
            if dweight is not None:
                part = product(across[number], g.T)
                dw = part if dw is None else dw.add_(part)
        if dweight is not None and dw is not None:
            dweight[columns] = dw.T
    return None if dhidden is None else dhidden.mul_(logits.factor), dweight

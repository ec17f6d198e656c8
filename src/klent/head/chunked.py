"""Token statistics from tiles of the logits: neither the forward nor the backward holds ``[N, V]``.

Forward. A tile ``z`` (some rows x some words) is folded into three numbers per row, relative to the running
maximum ``m``: ``s = sum_v exp(z_v - m)`` and ``u = sum_v exp(z_v - m) (z_v - m)``. After the last tile

    log p_v = (z_v - m) - log s          H = -sum_v p_v log p_v = log s - u / s

Backward. With ``c = dL/dlogp`` and ``e = dL/dH`` of a row, and the mean ``u / s = sum_v p_v (z_v - m)``,

    dL/dz_v = c ([v = target] - p_v) - e p_v (log p_v + H)
            = c [v = target] - exp(z_v - m) / s * (c + e ((z_v - m) - u / s))

so a recomputed tile of logits becomes a tile of coefficients in place, and one product each carries it to
``hidden`` and ``weight``. A row with ``c = e = 0`` contributes exactly nothing: it is dropped beforehand.

Logits are held in bits, ``z / log 2``: ``torch.exp2`` is four times as fast as ``torch.exp`` on a processor
for which the vendor's mathematical library is not made, and the factor costs nothing, because the hidden
states are multiplied by a constant anyway. Outside of this file everything is in nats.
"""

import math
from typing import Any

import torch
from torch import Tensor

from klent.head.products import product
from klent.head.stats import Shape, TokenStats, accumulation_dtype

# 4 MB in float32: two such tiles stay in the last cache level. Many rows, because the gradient of a weight is
# written once for every tile of rows; few tiles of rows also convert a narrower weight fewer times.
TILE_ROWS, TILE_WORDS = 2048, 512
FLOOR = -1e30  # stands for -inf in the bias: exp is still exactly 0, and 0 * (z - m) is 0 instead of NaN
NATS = math.log(2)  # of one bit


def token_stats_chunked(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, shape: Shape, entropy: bool
) -> TokenStats:
    """The numbers and gradients of ``token_stats_reference``, tile by tile. Differentiable once."""
    return TokenStats(*_TokenStats.apply(hidden, weight, bias, target, shape, entropy))


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        shape: Shape,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(hidden.device.type, enabled=False):  # it would round products to bfloat16
            m, s, u, at_target = _statistics(_Logits(hidden, weight, bias, shape), target, entropy)
        mean = u / s
        logp = ((at_target - m) - s.log2()) * NATS
        if bias is not None and shape.softcap is None:
            logp = logp.masked_fill(bias[target] == -torch.inf, -torch.inf)
        ctx.save_for_backward(hidden, weight, bias, target, m, s, mean)
        ctx.shape = shape
        ctx.set_materialize_grads(False)  # an output that the loss does not use comes back as None
        return logp, (s.log2() - mean) * NATS if entropy else None

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, e: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; staying silent would make the gradient a constant
            raise RuntimeError(
                "token_stats is differentiable once, and create_graph=True asks for a second time: "
                'use token_stats(..., implementation="reference") there'
            )
        hidden, weight, bias, *rows = ctx.saved_tensors
        c = torch.zeros_like(rows[-1]) if c is None else c
        e = torch.zeros_like(rows[-1]) if e is None else e
        rows += [c, e]
        active = ((c != 0) | (e != 0)).nonzero().squeeze(1)
        if active.numel() == 0:
            inputs = zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
            return *(torch.zeros_like(x) if wanted else None for x, wanted in inputs), None, None, None
        x = hidden
        if active.numel() < c.numel():
            x, *rows = (row.index_select(0, active) for row in (hidden, *rows))
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _Logits(x, weight, bias, ctx.shape)
            coefficients = _Coefficients(logits, *rows)
            dhidden, dweight, dbias = _gradients(logits, coefficients, ctx.needs_input_grad[:3])
        if dhidden is not None:
            dhidden = dhidden.to(hidden.dtype)
            if active.numel() < c.numel():
                dhidden = torch.zeros_like(hidden).index_copy_(0, active, dhidden)
        if dbias is not None:
            dbias = dbias.to(bias.dtype)
        return dhidden, dweight, dbias, None, None, None


class _Logits:
    """The logits in bits, seen one tile at a time.

    A tile is the product ``y = factor * (hidden @ weight.T + bias)`` itself or, where the model caps its
    logits, ``reach * tanh(y)``. ``gain`` is the derivative of a logit in nats by ``y``, leaving out the
    ``1 - tanh(y)^2`` that differs from word to word.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> None:
        if shape.softcap is None:
            self.reach, self.factor = None, shape.scale / shape.temperature / NATS
        else:
            self.reach, self.factor = shape.softcap / shape.temperature / NATS, shape.scale / shape.softcap
        self.gain = NATS if self.reach is None else NATS * self.reach
        self.dtype = accumulation_dtype(hidden, weight)
        self.hidden = hidden.to(self.dtype) * self.factor  # once over [N, H] instead of over every tile
        self.weight = weight
        self.bias = None if bias is None else (bias.to(self.dtype) * self.factor).clamp_(min=FLOOR)
        self.buffer = self.hidden.new_empty(min(TILE_ROWS, len(hidden)) * min(TILE_WORDS, len(weight)))

    def words(self, words: slice) -> Tensor:
        """The weight of some words, ``[words, H]``, in the precision of the sums (a view where it has it)."""
        return self.weight[words].to(self.dtype)

    def tile(self, rows: slice, words: slice, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of some rows at some words in new memory, and ``tanh(y)`` where they are capped."""
        y = product(self.hidden[rows], w, None if self.bias is None else self.bias[words])
        return (y, None) if self.reach is None else (y.tanh_() * self.reach, y)

    def scratch(self, z: Tensor) -> Tensor:
        """A second tile like ``z``; the next call gives the same memory."""
        return self.buffer[: z.numel()].view_as(z)


def _statistics(logits: _Logits, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``m``, ``s``, ``u`` and the logit of the target of every row."""
    m = logits.hidden.new_full(target.shape, FLOOR)
    s, u, at_target = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
    for words in _blocks(logits.weight.shape[0], TILE_WORDS):
        w = logits.words(words)
        for rows in _blocks(target.shape[0], TILE_ROWS):
            z, _ = logits.tile(rows, words, w)
            here, column = _locate(target[rows], words)
            at_target[rows] = torch.where(here, z.gather(1, column).squeeze(1), at_target[rows])
            _fold(z, logits.scratch(z), m[rows], s[rows], u[rows] if entropy else None)
    return m, s, u, at_target


def _fold(z: Tensor, scratch: Tensor, m: Tensor, s: Tensor, u: Tensor | None) -> None:
    """Take a tile into its rows' running maximum ``m``, sum ``s`` and weighted sum ``u``; ``z`` is spent."""
    top = torch.maximum(m, z.amax(1))
    shift = m - top
    scale = shift.exp2()
    z.sub_(top.unsqueeze(1))
    exp = torch.exp2(z, out=scratch)
    if u is not None:  # moving the maximum by `shift` turns u into scale * (u + s * shift)
        u.addcmul_(s, shift).mul_(scale).add_(z.mul_(exp).sum(1))
    s.mul_(scale).add_(exp.sum(1))
    m.copy_(top)


class _Coefficients:
    """Turns a tile of logits into the tile of ``dL/dy`` (see the head of this file)."""

    def __init__(
        self, logits: _Logits, target: Tensor, m: Tensor, s: Tensor, mean: Tensor, c: Tensor, e: Tensor
    ) -> None:
        self.target, self.m, self.c, self.logits = target, m.unsqueeze(1), c * logits.gain, logits
        self.level = ((e * NATS * mean - c) / s * logits.gain).unsqueeze(1)
        self.slope = (-e * NATS / s * logits.gain).unsqueeze(1) if bool((e != 0).any()) else None

    def __call__(self, z: Tensor, tanh: Tensor | None, rows: slice, words: slice) -> Tensor:
        z.sub_(self.m[rows])
        g = torch.exp2(z, out=self.logits.scratch(z))
        if self.slope is None:
            g.mul_(self.level[rows])
        else:
            g.mul_(z.mul_(self.slope[rows]).add_(self.level[rows]))
        here, column = _locate(self.target[rows], words)
        g.scatter_add_(1, column, torch.where(here, self.c[rows], 0.0).unsqueeze(1))
        return g if tanh is None else g.addcmul_(g, tanh.square_(), value=-1)


def _gradients(
    logits: _Logits, coefficients: _Coefficients, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states (in the precision of the sums), weight and bias; None where not wanted."""
    hidden, weight = logits.hidden, logits.weight
    dhidden = torch.zeros_like(hidden) if wanted[0] else None
    dweight = torch.empty_like(weight) if wanted[1] else None
    dbias = hidden.new_zeros(weight.shape[0]) if wanted[2] else None
    row_blocks = _blocks(hidden.shape[0], TILE_ROWS)
    across = [hidden[rows].T.contiguous() for rows in row_blocks] if wanted[1] else []
    for words in _blocks(weight.shape[0], TILE_WORDS):
        w = logits.words(words)
        dw = None
        for k, rows in enumerate(row_blocks):
            g = coefficients(*logits.tile(rows, words, w), rows, words)
            if dhidden is not None:
                dhidden[rows] += product(g, w.T)
            if dweight is not None:  # [H, words]: the library would first transpose g for [words, H]
                block = product(across[k], g.T)
                dw = block if dw is None else dw.add_(block)
            if dbias is not None:
                dbias[words] += g.sum(0)
        if dweight is not None and dw is not None:
            dweight[words] = dw.T
    return (
        None if dhidden is None else dhidden.mul_(logits.factor),
        dweight,
        None if dbias is None else dbias.mul_(logits.factor),
    )


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _locate(target: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which rows have their target among these words, and its column (any column where it is elsewhere)."""
    here = (target >= words.start) & (target < words.stop)
    return here, (target - words.start).clamp_(0, words.stop - words.start - 1).unsqueeze(1)

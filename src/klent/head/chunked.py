"""Token statistics from tiles of the logits: neither the forward nor the backward holds ``[N, V]``.

Forward. A tile ``z`` (some rows x some words) is folded into three numbers per row, relative to the running
maximum ``m``: ``s = sum_v exp(z_v - m)`` and ``u = sum_v exp(z_v - m) (z_v - m)``. After the last tile

    log p_v = (z_v - m) - log s          H = -sum_v p_v log p_v = log s - u / s

Backward. With ``c = dL/dlogp`` and ``e = dL/dH`` of a row, and the mean ``u / s = sum_v p_v (z_v - m)``,

    dL/dz_v = c ([v = target] - p_v) - e p_v (log p_v + H)
            = c [v = target] - exp(z_v - m) / s * (c + e ((z_v - m) - u / s))

so a recomputed tile of logits becomes a tile of coefficients in place, and one product each carries it to
``hidden`` and ``weight``. A row with ``c = e = 0`` contributes exactly nothing: it is dropped beforehand.
"""

from typing import Any

import torch
from torch import Tensor

from klent.head.stats import TokenStats, accumulation_dtype

TILE_ROWS, TILE_WORDS = 1024, 1024  # 4 MB in float32; two such tiles stay in the last cache level
FLOOR = -1e30  # stands for -inf in the bias: exp is still exactly 0, and 0 * (z - m) is 0 instead of NaN


def token_stats_chunked(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, temperature: float, entropy: bool
) -> TokenStats:
    """The numbers and gradients of ``token_stats_reference``, tile by tile. Differentiable once."""
    return TokenStats(*_TokenStats.apply(hidden, weight, bias, target, temperature, entropy))


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        logits = _Logits(hidden, weight, bias, temperature)
        m = logits.hidden.new_full(target.shape, FLOOR)
        s, u, at_target = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
        for words in _blocks(weight.shape[0], TILE_WORDS):
            w = logits.words(words)
            for rows in _blocks(target.shape[0], TILE_ROWS):
                z, scratch = logits.tile(rows, words, w)
                here, column = _locate(target[rows], words)
                at_target[rows] = torch.where(here, z.gather(1, column).squeeze(1), at_target[rows])
                _fold(z, scratch, m[rows], s[rows], u[rows] if entropy else None)
        logp = (at_target - m) - s.log()
        if bias is not None:
            logp = logp.masked_fill(bias[target] == -torch.inf, -torch.inf)
        mean = u / s
        ctx.save_for_backward(hidden, weight, bias, target, m, s, mean)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # an output that the loss does not use comes back as None
        return logp, s.log() - mean if entropy else None

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
        logits = _Logits(x, weight, bias, ctx.temperature)
        dhidden, dweight, dbias = _gradients(logits, _Coefficients(*rows), ctx.needs_input_grad[:3])
        if dhidden is not None:
            dhidden = dhidden.div_(ctx.temperature).to(hidden.dtype)
            if active.numel() < c.numel():
                dhidden = torch.zeros_like(hidden).index_copy_(0, active, dhidden)
        if dbias is not None:
            dbias = dbias.div_(ctx.temperature).to(bias.dtype)
        return dhidden, dweight, dbias, None, None, None


class _Logits:
    """``(hidden @ weight.T + bias) / temperature``, seen one tile at a time through two reused buffers."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> None:
        self.dtype = accumulation_dtype(hidden, weight)
        self.hidden = hidden.to(self.dtype)
        if temperature != 1.0:
            self.hidden = self.hidden / temperature  # once over [N, H] instead of over every tile
        self.weight = weight
        self.bias = None if bias is None else (bias.to(self.dtype) / temperature).clamp_(min=FLOOR)
        area = min(TILE_ROWS, hidden.shape[0]) * min(TILE_WORDS, weight.shape[0])
        self.buffers = self.hidden.new_empty(2, area)

    def words(self, words: slice) -> Tensor:
        """The weight of some words, ``[words, H]``, in the precision of the sums (a view where it has it)."""
        return self.weight[words].to(self.dtype)

    def tile(self, rows: slice, words: slice, w: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of some rows at some words, and a scratch tile like it; the next call overwrites both."""
        x = self.hidden[rows]
        z, scratch = self.buffers[:, : x.shape[0] * w.shape[0]].view(2, x.shape[0], w.shape[0])
        if self.bias is None:
            torch.mm(x, w.T, out=z)
        else:
            torch.addmm(self.bias[words], x, w.T, out=z)
        return z, scratch


def _fold(z: Tensor, scratch: Tensor, m: Tensor, s: Tensor, u: Tensor | None) -> None:
    """Take a tile into its rows' running maximum ``m``, sum ``s`` and weighted sum ``u``; ``z`` is spent."""
    top = torch.maximum(m, z.amax(1))
    shift = m - top
    scale = shift.exp()
    z.sub_(top.unsqueeze(1))
    exp = torch.exp(z, out=scratch)
    if u is not None:  # moving the maximum by `shift` turns u into scale * (u + s * shift)
        u.addcmul_(s, shift).mul_(scale).add_(z.mul_(exp).sum(1))
    s.mul_(scale).add_(exp.sum(1))
    m.copy_(top)


class _Coefficients:
    """Turns a tile of logits into the tile of ``dL/dz`` (see the head of this file)."""

    def __init__(self, target: Tensor, m: Tensor, s: Tensor, mean: Tensor, c: Tensor, e: Tensor) -> None:
        self.target, self.m, self.c = target, m.unsqueeze(1), c
        self.level = ((e * mean - c) / s).unsqueeze(1)
        self.slope = (-e / s).unsqueeze(1) if bool((e != 0).any()) else None

    def __call__(self, z: Tensor, scratch: Tensor, rows: slice, words: slice) -> Tensor:
        z.sub_(self.m[rows])
        g = torch.exp(z, out=scratch)
        if self.slope is None:
            g.mul_(self.level[rows])
        else:
            g.mul_(z.mul_(self.slope[rows]).add_(self.level[rows]))
        here, column = _locate(self.target[rows], words)
        return g.scatter_add_(1, column, torch.where(here, self.c[rows], 0.0).unsqueeze(1))


def _gradients(
    logits: _Logits, coefficients: _Coefficients, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the scaled hidden states and of the weight and scaled bias; None where not wanted."""
    hidden, weight = logits.hidden, logits.weight
    dhidden = torch.zeros_like(hidden) if wanted[0] else None
    dweight = torch.empty_like(weight) if wanted[1] else None
    dbias = hidden.new_zeros(weight.shape[0]) if wanted[2] else None
    for words in _blocks(weight.shape[0], TILE_WORDS):
        w = logits.words(words)
        dw = None if dweight is None else _accumulator(dweight[words], logits.dtype)
        for rows in _blocks(hidden.shape[0], TILE_ROWS):
            g = coefficients(*logits.tile(rows, words, w), rows, words)
            if dhidden is not None:
                dhidden[rows].addmm_(g, w)
            if dw is not None:
                dw.addmm_(g.T, hidden[rows])
            if dbias is not None:
                dbias[words] += g.sum(0)
        if dweight is not None and dw is not None and dw.dtype != dweight.dtype:
            dweight[words] = dw
    return dhidden, dweight, dbias


def _accumulator(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros to add into: the gradient's own memory where its precision will do, else wider ones."""
    return gradient.zero_() if gradient.dtype == dtype else torch.zeros_like(gradient, dtype=dtype)


def _blocks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _locate(target: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which rows have their target among these words, and its column (any column where it is elsewhere)."""
    here = (target >= words.start) & (target < words.stop)
    return here, (target - words.start).clamp_(0, words.stop - words.start - 1).unsqueeze(1)

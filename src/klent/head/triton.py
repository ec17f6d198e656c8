"""The chunked head on a GPU: its element-wise work in two kernels, its products in the vendor's library.

The arithmetic is that of ``chunked.py``. There, every line of torch passes over a tile; here one kernel reads
a tile of products once and folds it into the running numbers of its rows, and one turns a recomputed tile
into coefficients, so that a tile travels through memory twice for each product and no ``[N, V]`` exists.
bfloat16 inputs are multiplied as they are and summed in float32; coefficients are rounded to bfloat16 before
their two products, which is where a model's own head rounds them. Other dtypes are widened to float32, and
float64, which is for tests, goes to ``chunked.py``.

The rows with non-zero coefficients are selected on the device; the host waits once, for their number.

With TRITON_INTERPRET=1 in the environment the kernels run on a CPU, slowly, which is how they are tested.
"""

import math
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from klent.head.chunked import FLOOR, NATS, token_stats_chunked
from klent.head.stats import Shape, TokenStats, accumulation_dtype

TILE_ROWS, TILE_WORDS = 4096, 8192  # 134 MB in float32: large enough for the products, small beside a model
BLOCK = 1024  # words that one step of a kernel holds


def token_stats_triton(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, shape: Shape, entropy: bool
) -> TokenStats:
    """The numbers and gradients of ``token_stats_reference`` on a GPU. Differentiable once."""
    if not hidden.is_cuda and not triton.knobs.runtime.interpret:
        raise ValueError(
            f'implementation="triton" needs tensors on a GPU, not on {hidden.device}: use "auto" or "chunked"'
        )
    if accumulation_dtype(hidden, weight) == torch.float64:
        return token_stats_chunked(hidden, weight, target, bias, shape, entropy)
    return TokenStats(*_TokenStats.apply(hidden, weight, bias, target, shape, entropy))


@triton.jit
def _logits(y, bias, columns, mask, scale, reach, HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr):  # type: ignore
    """Logits in bits from a piece of a tile of products, and tanh(y), which only a capped head needs."""
    if HAS_BIAS:
        y += tl.load(bias + columns, mask=mask, other=0.0).to(tl.float32)
    y *= scale
    y = tl.where(y < -1e30, -1e30, y)  # -inf in the bias; a maximum would also hide NaN
    tanh = y
    if CAPPED:  # tanh from the exponential of a number <= 0, which cannot overflow
        small = tl.exp2(-2.8853900817779268 * tl.abs(y))
        tanh = (1.0 - small) / (1.0 + small)
        tanh = tl.where(y < 0, -tanh, tanh)
        y = tanh * reach
    return y, tanh


@triton.jit
def _fold(  # type: ignore[no-untyped-def]
    tile, stride, bias, target, m_rows, s_rows, u_rows, t_rows, start, words, scale, reach,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of a tile into its running maximum, sum, weighted sum and target logit."""
    row = tl.program_id(0).to(tl.int64)
    m, s, u = tl.load(m_rows + row), tl.load(s_rows + row), tl.load(u_rows + row)
    wanted, found = tl.load(target + row) - start, tl.load(t_rows + row)
    for first in range(0, words, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < words
        y = tl.load(tile + row * stride + columns, mask=mask, other=0.0)
        z, _ = _logits(y, bias, columns, mask, scale, reach, HAS_BIAS, CAPPED)
        top = tl.maximum(m, tl.max(tl.where(mask, z, -1e30), axis=0))
        shift = m - top
        moved = tl.exp2(shift)
        x = tl.where(mask, z - top, 0.0)
        exp = tl.where(mask, tl.exp2(x), 0.0)
        u = (u + s * shift) * moved + tl.sum(exp * x, axis=0)
        s = s * moved + tl.sum(exp, axis=0)
        found += tl.sum(tl.where(mask & (columns == wanted), z, 0.0), axis=0)
        m = top
    tl.store(m_rows + row, m)
    tl.store(s_rows + row, s)
    tl.store(u_rows + row, u)
    tl.store(t_rows + row, found)


@triton.jit
def _coefficients(  # type: ignore[no-untyped-def]
    tile, stride, out, bias, target, m_rows, level_rows, slope_rows, c_rows, start, words, scale, reach,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A piece of one row of a tile into the derivatives of the loss by its products."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < words
    y = tl.load(tile + row * stride + columns, mask=mask, other=0.0)
    z, tanh = _logits(y, bias, columns, mask, scale, reach, HAS_BIAS, CAPPED)
    x = z - tl.load(m_rows + row)
    g = tl.exp2(x) * (tl.load(level_rows + row) + tl.load(slope_rows + row) * x)
    g += tl.where(columns == tl.load(target + row) - start, tl.load(c_rows + row), 0.0)
    if CAPPED:
        g *= 1.0 - tanh * tanh
    tl.store(out + row * stride + columns, g.to(out.dtype.element_ty), mask=mask)


class _Tiles:
    """Products of a head tile by tile, and what the kernels need to make logits of them."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> None:
        narrow = hidden.dtype == weight.dtype == torch.bfloat16
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.hidden, self.weight = hidden.to(self.dtype), weight
        self.bias = None if bias is None else bias.contiguous()
        self.slope = shape.scale / shape.temperature  # of a logit in nats by its product
        bits = shape.temperature * NATS
        self.scale = shape.scale / (bits if shape.softcap is None else shape.softcap)
        self.reach = 0.0 if shape.softcap is None else shape.softcap / bits
        self.size = (min(TILE_ROWS, len(hidden)), min(TILE_WORDS, len(weight)))
        self.options = {"HAS_BIAS": bias is not None, "CAPPED": shape.softcap is not None, "BLOCK": BLOCK}

    def __iter__(self) -> Any:
        """``(words, weight of these words)`` in the dtype of the products."""
        for start in range(0, len(self.weight), TILE_WORDS):
            words = slice(start, min(start + TILE_WORDS, len(self.weight)))
            yield words, self.weight[words].to(self.dtype)

    def row_blocks(self) -> list[slice]:
        return [slice(i, min(i + TILE_ROWS, len(self.hidden))) for i in range(0, len(self.hidden), TILE_ROWS)]

    def bias_of(self, words: slice) -> Tensor:
        """Something to point at where there is no bias: the kernels do not read it."""
        return self.weight if self.bias is None else self.bias[words]


def _statistics(tiles: _Tiles, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m = torch.full(target.shape, FLOOR, device=target.device)
    s, u, at_target = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
    for words, w in tiles:
        for rows in tiles.row_blocks():
            tile = _multiply(tiles.hidden[rows], w.T)
            _fold[(tile.shape[0],)](
                tile, tile.stride(0), tiles.bias_of(words), target[rows], m[rows], s[rows], u[rows],
                at_target[rows], words.start, tile.shape[1], tiles.scale, tiles.reach, **tiles.options,
            )  # fmt: skip
    return m, s, u, at_target


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
        with torch.autocast(hidden.device.type, enabled=False):
            m, s, u, at_target = _statistics(_Tiles(hidden, weight, bias, shape), target.contiguous())
        mean = u / s
        logp = ((at_target - m) - s.log2()) * NATS
        if bias is not None and shape.softcap is None:
            logp = logp.masked_fill(bias[target] == -torch.inf, -torch.inf)
        ctx.save_for_backward(hidden, weight, bias, target, m, s, mean)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return logp, (s.log2() - mean) * NATS if entropy else None

    @staticmethod
    def backward(ctx: Any, c: Tensor | None, e: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "token_stats is differentiable once, and create_graph=True asks for a second time: "
                'use token_stats(..., implementation="reference") there'
            )
        hidden, weight, bias, *rows = ctx.saved_tensors
        c = torch.zeros_like(rows[-1]) if c is None else c
        e = torch.zeros_like(rows[-1]) if e is None else e
        active = ((c != 0) | (e != 0)).nonzero().squeeze(1)  # the host waits here for the number of rows
        x, target, m, s, mean, c, e = (row.index_select(0, active) for row in (hidden, *rows, c, e))
        with torch.autocast(hidden.device.type, enabled=False):
            tiles = _Tiles(x, weight, bias, ctx.shape)
            level, slope = (e * NATS * mean - c) / s * tiles.slope, -e * NATS / s * tiles.slope
            per_row = (target, m, level, slope, c * tiles.slope)
            dhidden, dweight, dbias = _gradients(tiles, per_row, ctx.needs_input_grad[:3])
        if dhidden is not None:
            dhidden = torch.zeros_like(hidden).index_copy_(0, active, dhidden.to(hidden.dtype))
        if dbias is not None:
            dbias = dbias.to(bias.dtype)
        return dhidden, dweight, dbias, None, None, None


def _gradients(
    tiles: _Tiles, per_row: tuple[Tensor, ...], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden states and bias (in float32) and of the weight; None where not wanted."""
    hidden, weight = tiles.hidden, tiles.weight
    dhidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted[0] else None
    dweight = torch.zeros_like(weight) if wanted[1] else None
    dbias = torch.zeros(len(weight), device=weight.device) if wanted[2] else None
    for words, w in tiles:
        dw = torch.zeros_like(w, dtype=torch.float32) if wanted[1] else None
        for rows in tiles.row_blocks():
            tile = _multiply(hidden[rows], w.T)
            g = tile if tiles.dtype == tile.dtype else torch.empty_like(tile, dtype=tiles.dtype)
            grid = (tile.shape[0], math.ceil(tile.shape[1] / BLOCK))
            _coefficients[grid](
                tile, tile.stride(0), g, tiles.bias_of(words), *(row[rows] for row in per_row),
                words.start, tile.shape[1], tiles.scale, tiles.reach, **tiles.options,
            )  # fmt: skip
            if dhidden is not None:
                _accumulate(dhidden[rows], g, w)
            if dw is not None:
                _accumulate(dw, g.T, hidden[rows])
            if dbias is not None:
                dbias[words] += g.sum(0, dtype=torch.float32)
        if dweight is not None and dw is not None:
            dweight[words] = dw.to(dweight.dtype)
    return dhidden, dweight, dbias


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32."""
    if a.is_cuda and a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` in float32."""
    if a.is_cuda and a.dtype == torch.bfloat16:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())

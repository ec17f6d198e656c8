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
from collections.abc import Iterator

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from klent.head.autograd import Gradients, Kept, Kernels, Rows, Sums, Wanted, fused_token_stats
from klent.head.chunked import room_for_tiles, token_stats_chunked
from klent.head.stats import FLOOR, NATS, Head, TokenStats, accumulation_dtype

TILE_ROWS, TILE_COLUMNS = 4096, 8192  # 134 MB in float32: large enough for the products, small beside a model
BLOCK = 1024  # columns that one step of a kernel holds


def token_stats_triton(
    head: Head, target: Tensor, entropy: bool, collision: bool = False, keep_bytes: int = 0
) -> TokenStats:
    """The numbers and gradients of ``token_stats_reference`` on a GPU. Differentiable once."""
    device = head.hidden.device
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ValueError(
            f'implementation="triton" needs tensors on a GPU, not on {device}: use "auto" or "chunked"'
        )
    if accumulation_dtype(head.hidden, head.weight) == torch.float64:
        return token_stats_chunked(head, target, entropy, collision, keep_bytes)
    return fused_token_stats(Kernels(_sweep, _gradients), head, target, entropy, collision, keep_bytes)


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
    tile, stride, bias, target, m_rows, s_rows, u_rows, t_rows, s2_rows, u2_rows, start, width, scale, reach,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """One row of a tile into its running maximum, sums and target logit; sums of squares where asked."""
    row = tl.program_id(0).to(tl.int64)
    m, s, u = tl.load(m_rows + row), tl.load(s_rows + row), tl.load(u_rows + row)
    wanted, at_target = tl.load(target + row) - start, tl.load(t_rows + row)
    s2, u2 = 0.0, 0.0
    if SQUARES:
        s2, u2 = tl.load(s2_rows + row), tl.load(u2_rows + row)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        mask = columns < width
        y = tl.load(tile + row * stride + columns, mask=mask, other=0.0)
        z, _ = _logits(y, bias, columns, mask, scale, reach, HAS_BIAS, CAPPED)
        top = tl.maximum(m, tl.max(tl.where(mask, z, -1e30), axis=0))
        shift = m - top
        moved = tl.exp2(shift)
        x = tl.where(mask, z - top, 0.0)
        exp = tl.where(mask, tl.exp2(x), 0.0)
        u = (u + s * shift) * moved + tl.sum(exp * x, axis=0)
        s = s * moved + tl.sum(exp, axis=0)
        if SQUARES:
            u2 = (u2 + s2 * shift) * moved * moved + tl.sum(exp * exp * x, axis=0)
            s2 = s2 * moved * moved + tl.sum(exp * exp, axis=0)
        at_target += tl.sum(tl.where(mask & (columns == wanted), z, 0.0), axis=0)
        m = top
    tl.store(m_rows + row, m)
    tl.store(s_rows + row, s)
    tl.store(u_rows + row, u)
    tl.store(t_rows + row, at_target)
    if SQUARES:
        tl.store(s2_rows + row, s2)
        tl.store(u2_rows + row, u2)


@triton.jit
def _coefficients(  # type: ignore[no-untyped-def]
    tile, stride, out, bias, target, m_rows, level_rows, slope_rows, c_rows, start, width, scale, reach,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A piece of one row of a tile into the derivatives of the loss by its products."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
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

    def __init__(self, head: Head) -> None:
        hidden, weight, bias, (temperature, scale, softcap) = head
        narrow = hidden.dtype == weight.dtype == torch.bfloat16
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.hidden, self.weight = hidden.to(self.dtype), weight
        self.bias = None if bias is None else bias.contiguous()
        self.slope = scale / temperature  # of a logit in nats by its product
        bits = temperature * NATS
        self.scale = scale / (bits if softcap is None else softcap)
        self.reach = 0.0 if softcap is None else softcap / bits
        self.options = {"HAS_BIAS": bias is not None, "CAPPED": softcap is not None, "BLOCK": BLOCK}

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """``(columns, weight of these columns)`` in the dtype of the products."""
        for start in range(0, len(self.weight), TILE_COLUMNS):
            columns = slice(start, min(start + TILE_COLUMNS, len(self.weight)))
            yield columns, self.weight[columns].to(self.dtype)

    def row_blocks(self) -> list[slice]:
        return [slice(i, min(i + TILE_ROWS, len(self.hidden))) for i in range(0, len(self.hidden), TILE_ROWS)]

    def bias_of(self, columns: slice) -> Tensor:
        """The bias of some columns; without one any pointer, which the kernels do not read."""
        return self.weight if self.bias is None else self.bias[columns]


def _sweep(head: Head, target: Tensor, entropy: bool, collision: bool, keep: int) -> Sums:
    """The entropy's sum ``u`` costs nothing here: it is always computed."""
    tiles = _Tiles(head)
    m = torch.full(target.shape, FLOOR, device=target.device)
    s, u, at_target = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
    s2, u2 = (torch.zeros_like(m), torch.zeros_like(m)) if collision else (s, u)  # not read without it
    kept = room_for_tiles(m, len(head.weight), TILE_COLUMNS, keep)
    for number, (columns, w) in enumerate(tiles):
        for rows in tiles.row_blocks():
            tile = _multiply(tiles.hidden[rows], w.T, kept[number][rows] if number < len(kept) else None)
            _fold[(tile.shape[0],)](
                tile, tile.stride(0), tiles.bias_of(columns), target[rows], m[rows], s[rows], u[rows],
                at_target[rows], s2[rows], u2[rows], columns.start, tile.shape[1], tiles.scale, tiles.reach,
                SQUARES=collision, **tiles.options,
            )  # fmt: skip
    return Sums(m, s, u, at_target, s2 if collision else None, u2 if collision else None, kept)


def _gradients(head: Head, rows: Rows, wanted: Wanted, kept: Kept) -> Gradients:
    tiles = _Tiles(head)
    target, m, s, mean, c, e = rows
    level, slope = (e * NATS * mean - c) / s * tiles.slope, -e * NATS / s * tiles.slope
    per_row = (target, m, level, slope, c * tiles.slope)
    hidden, weight = tiles.hidden, tiles.weight
    dhidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted[0] else None
    dweight = torch.zeros_like(weight) if wanted[1] else None
    dbias = torch.zeros(len(weight), device=weight.device) if wanted[2] else None
    for number, (columns, w) in enumerate(tiles):
        dw = torch.zeros_like(w, dtype=torch.float32) if wanted[1] else None
        for block in tiles.row_blocks():
            tile = kept.copy(number, block)
            tile = _multiply(hidden[block], w.T) if tile is None else tile
            g = tile if tiles.dtype == tile.dtype else torch.empty_like(tile, dtype=tiles.dtype)
            grid = (tile.shape[0], math.ceil(tile.shape[1] / BLOCK))
            _coefficients[grid](
                tile, tile.stride(0), g, tiles.bias_of(columns), *(row[block] for row in per_row),
                columns.start, tile.shape[1], tiles.scale, tiles.reach, **tiles.options,
            )  # fmt: skip
            if dhidden is not None:
                _accumulate(dhidden[block], g, w)
            if dw is not None:
                _accumulate(dw, g.T, hidden[block])
            if dbias is not None:
                dbias[columns] += g.sum(0, dtype=torch.float32)
        if dweight is not None and dw is not None:
            dweight[columns] = dw.to(dweight.dtype)
    return dhidden, dweight, dbias


def _multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b`` in float32, into ``out`` if it is given."""
    if a.is_cuda and a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` in float32."""
    if a.is_cuda and a.dtype == torch.bfloat16:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())

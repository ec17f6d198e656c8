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
    if HAS_BIAS:
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
    tile, stride, bias, target, m_rows, s_rows, u_rows, t_rows, s2_rows, u2_rows, first, start, width, scale, reach,
    HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """One row of a tile into its running maximum, sums and target logit; sums of squares where asked."""
    # From the last row up: what the product has written last is still in the cache.
    line = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    row = first + line
    tile += line * stride
    m, s, u = tl.load(m_rows + row), tl.load(s_rows + row), tl.load(u_rows + row)
    s2, u2 = 0.0, 0.0
    if SQUARES:
        s2, u2 = tl.load(s2_rows + row), tl.load(u2_rows + row)
    wanted = tl.load(target + row) - start
    here = (wanted >= 0) & (wanted < width)
    product = tl.load(tile + wanted, mask=here, other=0.0)
    at_target, _tanh = _logits(product, bias + start, wanted, here, scale, reach, HAS_BIAS, CAPPED)
    for begin in range(0, width, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        mask = (columns < width) | EVEN
        y = tl.load(tile + columns, mask=mask, other=0.0)
        z, _ = _logits(y, bias + start, columns, mask, scale, reach, HAS_BIAS, CAPPED)
        if EVEN:
            top = tl.maximum(m, tl.max(z, axis=0))
            x = z - top
            exp = tl.exp2(x)
        else:
            top = tl.maximum(m, tl.max(tl.where(mask, z, -1e30), axis=0))
            x = tl.where(mask, z - top, 0.0)
            exp = tl.where(mask, tl.exp2(x), 0.0)
        shift = m - top
        moved = tl.exp2(shift)
        u = (u + s * shift) * moved + tl.sum(exp * x, axis=0)
        s = s * moved + tl.sum(exp, axis=0)
        if SQUARES:
            u2 = (u2 + s2 * shift) * moved * moved + tl.sum(exp * exp * x, axis=0)
            s2 = s2 * moved * moved + tl.sum(exp * exp, axis=0)
        m = top
    tl.store(m_rows + row, m)
    tl.store(s_rows + row, s)
    tl.store(u_rows + row, u)
    tl.store(t_rows + row, at_target, mask=here)
    if SQUARES:
        tl.store(s2_rows + row, s2)
        tl.store(u2_rows + row, u2)


@triton.jit
def _coefficients(  # type: ignore[no-untyped-def]
    tile, stride, out, index, bias, target, m_rows, level_rows, slope_rows, c_rows, first, above, start, width,
    scale, reach, HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, EVEN: tl.constexpr, INDEXED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A piece of one row of a tile into the derivatives of the loss by its products.

    The row's products stand in the tile ``above`` lines further down, or where ``index`` says.
    """
    line = tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)
    row = first + line
    source = above + line
    if INDEXED:
        source = tl.load(index + row)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (columns < width) | EVEN
    y = tl.load(tile + source * stride + columns, mask=mask, other=0.0)
    z, tanh = _logits(y, bias + start, columns, mask, scale, reach, HAS_BIAS, CAPPED)
    x = z - tl.load(m_rows + row)
    g = tl.exp2(x) * (tl.load(level_rows + row) + tl.load(slope_rows + row) * x)
    g += tl.where(columns == tl.load(target + row) - start, tl.load(c_rows + row), 0.0)
    if CAPPED:
        g *= 1.0 - tanh * tanh
    tl.store(out + line * width + columns, g.to(out.dtype.element_ty), mask=mask)


class _Tiles:
    """Products of a head tile by tile, and what the kernels need to make logits of them."""

    def __init__(self, head: Head) -> None:
        hidden, weight, bias, (temperature, scale, softcap) = head
        narrow = hidden.dtype == weight.dtype == torch.bfloat16
        self.dtype = torch.bfloat16 if narrow else torch.float32
        self.hidden, self.weight = hidden.to(self.dtype), weight
        self.bias = weight if bias is None else bias.contiguous()  # without one any pointer: it is not read
        self.slope = scale / temperature  # of a logit in nats by its product
        bits = temperature * NATS
        self.scale = scale / (bits if softcap is None else softcap)
        self.reach = 0.0 if softcap is None else softcap / bits
        self.options = {"HAS_BIAS": bias is not None, "CAPPED": softcap is not None}
        steps = range(0, len(hidden), TILE_ROWS)
        self.blocks = [slice(i, min(i + TILE_ROWS, len(hidden))) for i in steps]
        self.memories: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """``(columns, weight of these columns)`` in the dtype of the products."""
        for start in range(0, len(self.weight), TILE_COLUMNS):
            columns = slice(start, min(start + TILE_COLUMNS, len(self.weight)))
            yield columns, self.weight[columns].to(self.dtype)

    def memory(self, name: str, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """``[rows, columns]``, whatever it holds: one memory for all tiles, of which the first is the largest."""
        if name not in self.memories:
            self.memories[name] = torch.empty(rows * columns, dtype=dtype, device=self.hidden.device)
        return self.memories[name][: rows * columns].view(rows, columns)


def _sweep(head: Head, target: Tensor, entropy: bool, collision: bool, keep: int) -> Sums:
    """The entropy's sum ``u`` costs nothing here: it is always computed."""
    tiles = _Tiles(head)
    m = torch.full(target.shape, FLOOR, device=target.device)
    s, u, at_target = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
    s2, u2 = (torch.zeros_like(m), torch.zeros_like(m)) if collision else (s, u)  # not read without it
    kept = room_for_tiles(m, len(head.weight), TILE_COLUMNS, keep)
    for number, (columns, w) in enumerate(tiles):
        width = len(w)
        for rows in tiles.blocks:
            hidden = tiles.hidden[rows]
            keeps = number < len(kept)
            tile = kept[number][rows] if keeps else tiles.memory("tile", len(hidden), width)
            _multiply(hidden, w.T, tile)
            _fold[(len(hidden),)](
                tile, width, tiles.bias, target, m, s, u, at_target, s2, u2, rows.start, columns.start, width,
                tiles.scale, tiles.reach, EVEN=width % BLOCK == 0, BLOCK=BLOCK, SQUARES=collision, **tiles.options,
            )  # fmt: skip
    return Sums(m, s, u, at_target, s2 if collision else None, u2 if collision else None, kept)


def _gradients(head: Head, rows: Rows, wanted: Wanted, kept: Kept) -> Gradients:
    tiles = _Tiles(head)
    target, m, s, mean, c, e = rows
    level, slope = (e * NATS * mean - c) / s * tiles.slope, -e * NATS / s * tiles.slope
    per_row = (target, m, level, slope, c * tiles.slope)
    hidden, weight = tiles.hidden, tiles.weight
    dhidden = torch.empty_like(hidden, dtype=torch.float32) if wanted[0] else None
    dweight = torch.empty_like(weight) if wanted[1] else None
    dbias = torch.zeros(len(weight), device=weight.device) if wanted[2] else None
    for number, (columns, w) in enumerate(tiles):
        width = len(w)
        dw = tiles.memory("dw", width, hidden.shape[1]) if wanted[1] else None
        for block in tiles.blocks:
            count = block.stop - block.start
            keeps = number < len(kept.tiles)
            tile = kept.tiles[number] if keeps else tiles.memory("tile", count, width)
            if not keeps:
                _multiply(hidden[block], w.T, tile)
            g = tiles.memory("g", count, width, tiles.dtype)
            index = target if kept.active is None else kept.active  # without one any pointer: it is not read
            _coefficients[(count, math.ceil(width / BLOCK))](
                tile, width, g, index, tiles.bias, *per_row, block.start, block.start if keeps else 0,
                columns.start, width, tiles.scale, tiles.reach, EVEN=width % BLOCK == 0,
                INDEXED=keeps and kept.active is not None, BLOCK=BLOCK, **tiles.options,
            )  # fmt: skip
            if dhidden is not None:
                _add(dhidden[block], g, w, begin=number == 0)
            if dw is not None:
                _add(dw, g.T, hidden[block], begin=block.start == 0)
            if dbias is not None:
                dbias[columns] += g.sum(0, dtype=torch.float32)
        if dweight is not None and dw is not None:
            dweight[columns] = dw
    return dhidden, dweight, dbias


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b`` in float32."""
    if a.is_cuda and a.dtype == torch.bfloat16:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def _add(total: Tensor, a: Tensor, b: Tensor, *, begin: bool) -> None:
    """``total += a @ b`` in float32; ``total = a @ b`` to begin with."""
    if begin:
        _multiply(a, b, total)
    elif a.is_cuda and a.dtype == torch.bfloat16:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())

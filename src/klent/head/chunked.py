"""Token statistics from tiles of the logits: neither the forward nor the backward holds ``[N, V]``.

Forward. A tile ``z`` (some rows x some tokens of the vocabulary) is folded into three numbers per row,
relative to the running maximum ``m``: ``s = sum_v exp(z_v - m)`` and
``u = sum_v exp(z_v - m) (z_v - m)``. After the last tile

    log p_v = (z_v - m) - log s          H = -sum_v p_v log p_v = log s - u / s

Where the collision is asked for, the same tile is also folded into ``s2 = sum_v exp(2(z_v - m))`` and
``u2 = sum_v exp(2(z_v - m)) (z_v - m)``, of which

    sum_v p_v^2 = s2 / s^2          sum_v p_v^2 log p_v = (u2 - s2 log s) / s^2

Backward. With ``c = dL/dlogp`` and ``e = dL/dH`` of a row, and the mean ``u / s = sum_v p_v (z_v - m)``,

    dL/dz_v = c ([v = target] - p_v) - e p_v (log p_v + H)
            = c [v = target] - exp(z_v - m) / s * (c + e ((z_v - m) - u / s))

so a tile of logits, recomputed or kept by the forward, becomes a tile of coefficients in place, and one product
each carries it to ``hidden`` and ``weight``. A row with ``c = e = 0`` contributes exactly nothing: it is dropped
beforehand.

Logits are held in bits, ``z / log 2``: ``torch.exp2`` is four times as fast as ``torch.exp`` on a processor
for which the vendor's mathematical library is not made, and the factor costs nothing, because the hidden
states are multiplied by a constant anyway. Outside of this file everything is in nats.
"""

import torch
from torch import Tensor

from klent.head.autograd import Gradients, Kept, Kernels, Rows, Sums, Wanted, fused_token_stats
from klent.head.products import product
from klent.head.stats import FLOOR, NATS, Head, TokenStats, accumulation_dtype

# 4 MB in float32: two such tiles stay in the last cache level. Many rows, because the gradient of a weight is
# written once for every tile of rows; few tiles of rows also convert a narrower weight fewer times.
TILE_ROWS, TILE_COLUMNS = 2048, 512


def token_stats_chunked(
    head: Head, target: Tensor, entropy: bool, collision: bool = False, keep_bytes: int = 0
) -> TokenStats:
    """The numbers and gradients of ``token_stats_reference``, tile by tile. Differentiable once."""
    return fused_token_stats(CHUNKED, head, target, entropy, collision, keep_bytes)


class Tiles:
    """The logits in bits, seen one tile at a time.

    A tile is the product ``y = factor * (hidden @ weight.T + bias)`` itself or, where the model caps its
    logits, ``reach * tanh(y)``. ``gain`` is the derivative of a logit in nats by ``y``, leaving out the
    ``1 - tanh(y)^2`` that differs from token to token.
    """

    def __init__(self, head: Head) -> None:
        hidden, weight, bias, (temperature, scale, softcap) = head
        if softcap is None:
            self.reach, self.factor = None, scale / temperature / NATS
        else:
            self.reach, self.factor = softcap / temperature / NATS, scale / softcap
        self.gain = NATS if self.reach is None else NATS * self.reach
        self.dtype = accumulation_dtype(hidden, weight)
        self.hidden = hidden.to(self.dtype) * self.factor  # once over [N, H] instead of over every tile
        self.weight = weight
        self.bias = None if bias is None else (bias.to(self.dtype) * self.factor).clamp_(min=FLOOR)
        self.buffer = self.hidden.new_empty(min(TILE_ROWS, len(hidden)) * min(TILE_COLUMNS, len(weight)))

    def weight_of(self, columns: slice) -> Tensor:
        """The weight of some tokens, ``[columns, H]``, in the precision of the sums (a view if it has it)."""
        return self.weight[columns].to(self.dtype)

    def tile(self, rows: slice, columns: slice, w: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of some rows at some tokens in new memory, and ``tanh(y)`` where they are capped."""
        y = product(self.hidden[rows], w, None if self.bias is None else self.bias[columns])
        return (y, None) if self.reach is None else (y.tanh_() * self.reach, y)

    def derivative(self, z: Tensor) -> Tensor | None:
        """``tanh(y)`` of logits that were kept, where they are capped."""
        return None if self.reach is None else z / self.reach

    def scratch(self, z: Tensor) -> Tensor:
        """A second tile like ``z``; the next call gives the same memory."""
        return self.buffer[: z.numel()].view_as(z)


def _sweep(head: Head, target: Tensor, entropy: bool, collision: bool, keep: int) -> Sums:
    logits = Tiles(head)
    m = logits.hidden.new_full(target.shape, FLOOR)
    s, u, at_target = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
    squares = (torch.zeros_like(m), torch.zeros_like(m)) if collision else None
    kept = room_for_tiles(m, len(logits.weight), TILE_COLUMNS, keep)
    for number, columns in enumerate(blocks(logits.weight.shape[0], TILE_COLUMNS)):
        w = logits.weight_of(columns)
        for rows in blocks(target.shape[0], TILE_ROWS):
            z, _ = logits.tile(rows, columns, w)
            if number < len(kept):
                kept[number][rows] = z
            inside, column = locate(target[rows], columns)
            at_target[rows] = torch.where(inside, z.gather(1, column).squeeze(1), at_target[rows])
            of_squares = None if squares is None else (squares[0][rows], squares[1][rows])
            fold(
                z, logits.scratch(z), m[rows], s[rows], u[rows] if entropy or collision else None, of_squares
            )
    s2, u2 = squares or (None, None)
    return Sums(m, s, u, at_target, s2, u2, kept)


def fold(
    z: Tensor,
    scratch: Tensor,
    m: Tensor,
    s: Tensor,
    u: Tensor | None,
    squares: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Take a tile into its rows' running maximum ``m``, sum ``s`` and weighted sum ``u``; ``z`` is spent.

    ``squares`` are the sums ``s2`` and ``u2`` of its rows; they need ``u``. Gives ``2^(z - m)`` of the tile, in
    ``scratch``.
    """
    top = torch.maximum(m, z.amax(1))
    shift = m - top
    scale = shift.exp2()
    z.sub_(top.unsqueeze(1))
    exp = torch.exp2(z, out=scratch)
    if u is not None:  # moving the maximum by `shift` turns u into scale * (u + s * shift)
        u.addcmul_(s, shift).mul_(scale).add_(z.mul_(exp).sum(1))
    if squares is not None:  # z now holds 2^(z - m) (z - m)
        s2, u2 = squares
        square = scale.square()
        u2.addcmul_(s2, shift).mul_(square).add_(torch.linalg.vecdot(exp, z))
        s2.mul_(square).add_(torch.linalg.vecdot(exp, exp))
    s.mul_(scale).add_(exp.sum(1))
    m.copy_(top)
    return exp


class _Coefficients:
    """Turns a tile of logits into the tile of ``dL/dy`` (see the head of this file)."""

    def __init__(self, logits: Tiles, rows: Rows) -> None:
        target, m, s, mean, c, e = rows
        self.target, self.m, self.c, self.logits = target, m.unsqueeze(1), c * logits.gain, logits
        self.level = ((e * NATS * mean - c) / s * logits.gain).unsqueeze(1)
        self.slope = (-e * NATS / s * logits.gain).unsqueeze(1) if bool((e != 0).any()) else None

    def __call__(self, z: Tensor, tanh: Tensor | None, rows: slice, columns: slice) -> Tensor:
        z.sub_(self.m[rows])
        g = torch.exp2(z, out=self.logits.scratch(z))
        if self.slope is None:
            g.mul_(self.level[rows])
        else:
            g.mul_(z.mul_(self.slope[rows]).add_(self.level[rows]))
        inside, column = locate(self.target[rows], columns)
        g.scatter_add_(1, column, torch.where(inside, self.c[rows], 0.0).unsqueeze(1))
        return g if tanh is None else g.addcmul_(g, tanh.square_(), value=-1)


def _gradients(head: Head, rows: Rows, wanted: Wanted, kept: Kept) -> Gradients:
    logits = Tiles(head)
    coefficients = _Coefficients(logits, rows)
    hidden, weight = logits.hidden, logits.weight
    dhidden = torch.zeros_like(hidden) if wanted[0] else None
    dweight = torch.empty_like(weight) if wanted[1] else None
    dbias = hidden.new_zeros(weight.shape[0]) if wanted[2] else None
    row_blocks = blocks(hidden.shape[0], TILE_ROWS)
    across = [hidden[block].T.contiguous() for block in row_blocks] if wanted[1] else []
    for number, columns in enumerate(blocks(weight.shape[0], TILE_COLUMNS)):
        w = logits.weight_of(columns)
        dw = None
        for k, block in enumerate(row_blocks):
            z = kept.copy(number, block)
            tile = logits.tile(block, columns, w) if z is None else (z, logits.derivative(z))
            g = coefficients(*tile, block, columns)
            if dhidden is not None:
                dhidden[block] += product(g, w.T)
            if dweight is not None:  # [H, columns]: the library would first transpose g for [columns, H]
                part = product(across[k], g.T)
                dw = part if dw is None else dw.add_(part)
            if dbias is not None:
                dbias[columns] += g.sum(0)
        if dweight is not None and dw is not None:
            dweight[columns] = dw.T
    return (
        None if dhidden is None else dhidden.mul_(logits.factor),
        dweight,
        None if dbias is None else dbias.mul_(logits.factor),
    )


def room_for_tiles(m: Tensor, vocabulary: int, width: int, room: int) -> tuple[Tensor, ...]:
    """Empty tiles of the rows of ``m``, for the first blocks of the vocabulary: as many as fit in ``room`` bytes."""
    tiles: list[Tensor] = []
    for columns in blocks(vocabulary, width):
        size = columns.stop - columns.start
        room -= len(m) * size * m.element_size()
        if room < 0:
            break
        tiles.append(m.new_empty(len(m), size))
    return tuple(tiles)


def blocks(length: int, size: int) -> list[slice]:
    """``length`` cut into parts of ``size``; the last may be shorter."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def locate(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which rows have their target among these columns, and in which one (any, where it is elsewhere)."""
    inside = (target >= columns.start) & (target < columns.stop)
    return inside, (target - columns.start).clamp_(0, columns.stop - columns.start - 1).unsqueeze(1)


CHUNKED = Kernels(_sweep, _gradients)

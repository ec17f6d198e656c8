"""The largest ratio of two models' probabilities at each state, from tiles of both heads' logits."""

import math

import torch
from torch import Tensor

from klent.head.chunked import TILE_COLUMNS, TILE_ROWS, Tiles, blocks, fold
from klent.head.stats import FLOOR, NATS, Head

__all__ = ["largest_log_ratio"]

LEAST = -1e4  # nats: an action that the other model takes out of its vocabulary is far below


def largest_log_ratio(one: Head, other: Head, *, floor: float = -math.inf) -> Tensor:
    """``max_a log p(a) - log q(a)`` over the actions with ``log q(a) >= floor``, tile by tile.

    Two sweeps over each head: for the normalisers, then for the maximum. Where the vocabularies differ in size, the
    maximum is over the tokens that both have, and each distribution is still normalised over all of its own.

    Args:
        one: hidden states ``[N, H]`` and head of the model that ``p`` is of.
        other: the same rows under the model that ``q`` is of, any width.
        floor: the least ``log q`` of an action that counts, nats, at most 0.

    Returns:
        ``[N]``, nats, float32 (float64 for float64 inputs), without gradient; -inf where no action counts.

    Raises:
        ValueError: the numbers of rows differ.

    Example:
        >>> hidden = torch.ones(1, 1)
        >>> one = Head(hidden, torch.tensor([[0.2], [0.7], [0.1]]).log())
        >>> other = Head(hidden, torch.tensor([[0.5], [0.4], [0.1]]).log())
        >>> largest_log_ratio(one, other).exp()
        tensor([1.7500])
        >>> largest_log_ratio(one, other, floor=math.log(0.45)).exp()
        tensor([0.4000])
    """
    if len(one.hidden) != len(other.hidden):
        raise ValueError(f"{len(one.hidden)} rows of one model and {len(other.hidden)} of the other")
    with torch.no_grad(), torch.autocast(one.hidden.device.type, enabled=False):
        ours, theirs = Tiles(one), Tiles(other)
        log_z = log_total(theirs)
        gap, least = log_z - log_total(ours), log_z + max(floor, LEAST) / NATS
        best = torch.full_like(gap, -math.inf)
        for columns in blocks(min(len(one.weight), len(other.weight)), TILE_COLUMNS):
            w, w_theirs = ours.weight_of(columns), theirs.weight_of(columns)
            for rows in blocks(len(one.hidden), TILE_ROWS):
                z, y = ours.tile(rows, columns, w)[0], theirs.tile(rows, columns, w_theirs)[0]
                apart = (z - y).masked_fill_(y < least[rows, None], -math.inf)
                best[rows] = torch.maximum(best[rows], apart.amax(dim=1))
        return (best + gap) * NATS


def log_total(logits: Tiles) -> Tensor:
    """``log2 Σ 2^z`` of every row, ``[N]``."""
    m = logits.hidden.new_full((len(logits.hidden),), FLOOR)
    s = torch.zeros_like(m)
    for columns in blocks(len(logits.weight), TILE_COLUMNS):
        w = logits.weight_of(columns)
        for rows in blocks(len(m), TILE_ROWS):
            z = logits.tile(rows, columns, w)[0]
            fold(z, logits.scratch(z), m[rows], s[rows], None)
    return m + s.log2()

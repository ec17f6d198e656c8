"""Attention of new tokens over prompts that their rows share: one product serves all rows of a prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Grid:
    """Rows laid out prompt by prompt.

    Args:
        slot: the index of each row in the grid of prompts times group, ``[R]``.
        prompts, group_size: of that grid.
        full: whether rows fill it one after the other.
    """

    def __init__(self, slot: Tensor, prompts: int, group_size: int, *, full: bool) -> None:
        self.slot, self.prompts, self.group_size = slot, prompts, group_size
        self.full = full

    def product(self, x: Tensor, other: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """``x[r] @ other[prompt of r] + bias``: ``[R, K, r, A]`` by ``[P, K, A, B]``."""
        _, kv_heads, repeat, inner = x.shape
        if not self.full:
            grid = x.new_zeros(self.prompts * self.group_size, kv_heads, repeat, inner)
            x = grid.index_copy_(0, self.slot, x)
        x = x.view(self.prompts, self.group_size, kv_heads, repeat, inner).transpose(1, 2)
        out = torch.matmul(x.reshape(self.prompts, kv_heads, self.group_size * repeat, inner), other)
        if bias is not None:
            out += bias
        out = out.view(self.prompts, kv_heads, self.group_size, repeat, -1).transpose(1, 2)
        out = out.reshape(self.prompts * self.group_size, kv_heads, repeat, -1)
        return out if self.full else out.index_select(0, self.slot)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shared: tuple[Tensor, Tensor],
    grid: Grid,
    *,
    scaling: float,
    bias: Tensor,
    ahead: Tensor | None = None,
) -> Tensor:
    """Attention of one new token per row, over its prompt and the tokens of its completion.

    Args:
        query: ``[R, heads, 1, D]``.
        key, value: of the completions, the new token included, ``[R, K, t, D]``.
        shared: keys and values of the prompts, ``[P, K, L, D]``.
        grid: which prompt is whose.
        scaling: multiplies the query.
        bias: added to the scores of the prompts, ``[P, 1, 1, L]``: -inf on padding.
        ahead: added to those of the completions, ``[t]``: -inf where nothing is written yet.

    Returns:
        ``[R, 1, heads, D]``.
    """
    rows, heads, _, width = query.shape
    shared_keys, shared_values = shared
    kv_heads, length = shared_keys.shape[1:3]
    q = (query * scaling).view(rows, kv_heads, heads // kv_heads, width)
    prompt_scores = grid.product(q, shared_keys.transpose(2, 3), bias=bias)
    completion_scores = torch.matmul(q, key.transpose(2, 3))
    if ahead is not None:
        completion_scores = completion_scores + ahead
    weight = torch.cat([prompt_scores, completion_scores], dim=-1).softmax(dim=-1)
    out = torch.matmul(weight[..., length:], value) + grid.product(weight[..., :length], shared_values)
    return out.view(rows, 1, heads, width)


def moved(kept: Sequence[int], size: int) -> tuple[list[int], list[int]]:
    """Which rows move where, so that the kept ones are among the first ``size``: the others stay.

    >>> moved([0, 3, 4], 3)
    ([3, 4], [1, 2])
    """
    staying = {row for row in kept if row < size}
    movers = [row for row in kept if row >= size]
    gaps = [row for row in range(size) if row not in staying]
    return movers, gaps[: len(movers)]

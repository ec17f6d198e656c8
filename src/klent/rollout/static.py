"""Decoding in memory laid out beforehand: every step works on the same tensors, so that a device can replay it.

:class:`StaticDecoder` gives the logits of :class:`klent.rollout.decoding.GroupDecoder`, whose layout it shares: a
prompt's keys and values once for its group, those of completions in one block per row. What differs is that nothing
grows and nothing is asked: the place of the next token is a number on the device, which the step itself moves on, and
tokens that are not there yet are hidden by a bias that the step opens place by place. Only which rows and how many
places a step looks at is decided by the host, and stays as it is from one step to the next.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from klent.policies.causal_lm.attention import AttentionKernel, AttentionLayer, attending
from klent.policies.causal_lm.model import CausalModel, reading_cache
from klent.rollout.decoding import prefill
from klent.rollout.fused import Fused
from klent.rollout.grid import Grid, attend, moved

ROOM = 32  # tokens of a completion where nobody says how many there may be
ROUND = 64  # prompts are padded to a multiple of this, so that the memory of a step serves the next step's prompts
WINDOW = 64  # places that a step looks at to begin with; doubled as completions grow


class StaticCache:
    """Keys and values in fixed memory; takes the place of a ``Cache`` of transformers.

    Attributes:
        prompts: keys and values of each layer, ``[P, K, L, D]``, padded on the left.
        bias: 0 on a prompt's tokens and -inf on its padding, ``[P, 1, 1, L]``.
        completions: keys and values of each layer, ``[R, K, room, D]``.
        slot: of each row, its index in the grid of prompts times group, ``[R]``: a permutation.
        length: tokens of each slot's prompt, ``[R]``.
        position: where the next token goes, ``[1]``, on the device.
        ahead: 0 on the places that are written and -inf on the others, ``[room]``.
        rows: how many rows a step computes: the first ones.
        window: how many places it looks at: the first ones.
        in_order: whether rows fill the grid one after the other.
        fused: whether attention is klent's kernel, which writes new keys and values, and looks at what is written.
    """

    def __init__(
        self, prefilled: Any, mask: Tensor, group_size: int, *, room: int, fused: bool = False
    ) -> None:
        count, length = mask.shape
        self.group_size, self.room, self.fused = group_size, room, fused
        self.length_of_prompts = -(-length // ROUND) * ROUND
        keys: Tensor = prefilled.layers[0].keys
        device, dtype = keys.device, keys.dtype
        self.prompts = [
            (
                _memory(layer.keys, count, self.length_of_prompts),
                _memory(layer.values, count, self.length_of_prompts),
            )
            for layer in prefilled.layers
        ]
        total = count * group_size
        self.completions = [
            (_memory(layer.keys, total, room), _memory(layer.values, total, room))
            for layer in prefilled.layers
        ]
        self.bias = torch.zeros(count, 1, 1, self.length_of_prompts, dtype=dtype, device=device)
        self.ahead = torch.zeros(room, dtype=dtype, device=device)
        self.places = torch.arange(room, device=device)
        self.slot = torch.arange(total, device=device)
        self.length = torch.zeros(total, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.fill(prefilled, mask)

    def fits(self, mask: Tensor, group_size: int) -> bool:
        """Whether prompts of this mask find room in the same memory."""
        count, length = mask.shape
        alike = (count, group_size) == (len(self.bias), self.group_size)
        return alike and -(-length // ROUND) * ROUND == self.length_of_prompts

    def fill(self, prefilled: Any, mask: Tensor) -> None:
        """Begin anew, behind these prompts."""
        length = mask.shape[1]
        for (keys, values), layer in zip(self.prompts, prefilled.layers, strict=True):
            keys[:, :, -length:].copy_(layer.keys)
            values[:, :, -length:].copy_(layer.values)
        self.bias.fill_(float("-inf"))
        self.bias[:, 0, 0, -length:].masked_fill_(mask.bool(), 0.0)
        self.ahead.fill_(float("-inf"))
        self.slot.copy_(torch.arange(len(self.slot), device=self.slot.device))
        self.length.copy_(mask.sum(dim=1).repeat_interleave(self.group_size))
        self.position.zero_()
        self.rows = len(self.slot)
        self.in_order = True
        self.look(0)

    def look(self, written: int) -> None:
        """Look at as many places as a token behind ``written`` others needs, and at most at twice as many."""
        self.window = self.room if self.fused else min(self.room, WINDOW)
        while self.window <= written and self.window < self.room:
            self.window = min(self.room, 2 * self.window)

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write one token per row, ``[rows, K, 1, D]``; the places that are looked at, ``[rows, K, window, D]``.

        A kernel gets the new token alone, as it comes.
        """
        if self.fused:
            return keys, values
        pair = self.completions[layer_idx]
        for memory, new in zip(pair, (keys, values), strict=True):
            memory[: self.rows].index_copy_(2, self.position, new)
        return pair[0][: self.rows, :, : self.window], pair[1][: self.rows, :, : self.window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No number that the device has to be asked for: positions are given."""
        return self.length_of_prompts

    def shrink(self, kept: Sequence[int], size: int) -> list[int]:
        """Compute the first ``size`` rows alone, among which the kept ones move; their new order, in old numbers."""
        movers, gaps = moved(kept, size)
        order = list(range(self.rows))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap], order[mover] = order[mover], order[gap]
        if movers:
            for pair in self.completions:
                for memory in pair:
                    memory[gaps] = memory[movers]
            self.slot[: self.rows] = self.slot[: self.rows][order]
        self.rows, self.in_order = size, False
        return order[:size]


def _memory(like: Tensor, rows: int, tokens: int) -> Tensor:
    """Zeros and not whatever was there: a weight of 0 times NaN is NaN."""
    return like.new_zeros(rows, like.shape[1], tokens, like.shape[3])


def _attend(
    layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor, cache: StaticCache, scaling: float
) -> Tensor:
    slot = cache.slot[: cache.rows]
    grid = Grid(slot, len(cache.bias), cache.group_size, full=cache.in_order)
    shared, ahead = cache.prompts[layer.layer_idx], cache.ahead[: cache.window]
    return attend(query, key, value, shared, grid, scaling=scaling, bias=cache.bias, ahead=ahead)


def _attend_fused(
    layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor, cache: StaticCache, scaling: float
) -> Tensor:
    from klent.rollout.triton import attend as attend_on_chip

    return attend_on_chip(
        query,
        key,
        value,
        cache.prompts[layer.layer_idx],
        cache.completions[layer.layer_idx],
        slot=cache.slot,
        length=cache.length,
        position=cache.position,
        group_size=cache.group_size,
        scaling=scaling,
    )


static_attention: AttentionKernel[StaticCache] = AttentionKernel("klent_static", _attend)
fused_attention: AttentionKernel[StaticCache] = AttentionKernel("klent_static_fused", _attend_fused)


class StaticDecoder:
    """A :class:`klent.rollout.decoding.Decoder` whose step touches no memory but its own.

    Args:
        model, prompts, group_size, pad: as of :class:`klent.rollout.decoding.GroupDecoder`.
        room: the most tokens that follow a prompt.
        cache: the memory of earlier prompts, which is used again where these fit into it.
        fused: the model's small operations in kernels; None = as transformers runs them.
    """

    def __init__(
        self,
        model: CausalModel,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        pad: int,
        room: int = ROOM,
        cache: StaticCache | None = None,
        fused: Fused | None = None,
    ) -> None:
        self.model, self.prompts, self.fused = model, prompts, fused
        self.group_size, self.pad, self.room = group_size, pad, room
        self.memory = cache
        self.written = 0

    def start(self) -> Tensor:
        logits, mask, prefilled = prefill(self.model, self.prompts, pad=self.pad)
        old = self.memory
        if old is not None and old.room == self.room and old.fits(mask, self.group_size):
            old.fill(prefilled, mask)
        else:
            self.memory = None  # freed before its successor is laid out
            del old
            fused = self.fused is not None
            self.memory = StaticCache(prefilled, mask, self.group_size, room=self.room, fused=fused)
        self.written = 0
        return logits.repeat_interleave(self.group_size, dim=0)

    @property
    def cache(self) -> StaticCache:
        """Of the prompts that were started."""
        assert self.memory is not None
        return self.memory

    def step(self, token: Tensor) -> Tensor:
        self.cache.look(self.written)
        self.written += 1
        return self.read(token)

    def read(self, token: Tensor) -> Tensor:
        """The part of a step that is on the device alone: read a token per row, move on; logits ``[rows, V]``."""
        cache = self.cache
        kernel = static_attention if self.fused is None else fused_attention
        if self.fused is None:
            cache.ahead.masked_fill_(cache.places == cache.position, 0.0)
        position = cache.length.index_select(0, cache.slot[: cache.rows]) + cache.position
        with (self.fused or nullcontext)(), attending(self.model, kernel, cache) as attention:
            output = self.model(
                input_ids=token[:, None],
                position_ids=position[:, None],
                **reading_cache(self.model, cache),
                **attention,
            )
        cache.position += 1
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> list[int]:
        return self.cache.shrink(rows, len(rows))

"""Decoding: the logits of the next token for rows that share their prompts.

Four decoders with the same three calls; :func:`choose_decoder` takes the first that gives the logits of each row
read alone, without a cache and without padding. :class:`GroupDecoder` keeps the keys and values of a prompt once for
its whole group, and those of the completions in memory laid out beforehand::

    prompts      keys [P, heads, prompt length, D]    read once per prompt, by all of its rows together
    completions  keys [R, heads, tokens so far, D]    one block per row

so a step neither copies earlier keys and values nor reads a prompt once per row. It uses the attention
interface of transformers; a model whose attention does more than scores and a softmax (a window, a cap, sinks)
goes through :class:`PlainDecoder`, which is transformers' own cache. Recurrent layers that read the padding of
shorter prompts get :class:`ApartDecoder`, which has none, and a model whose cache cannot be copied to the rows of a
group :class:`RereadDecoder`, which has no cache: slow, and exact.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from klent.errors import ModelError, first_line
from klent.models.exact import made_up_length
from klent.policies.causal_lm.attention import AttentionKernel, AttentionLayer, attending
from klent.policies.causal_lm.model import CausalModel, attention_window, reading_cache, whole_model
from klent.policies.causal_lm.probe import REFUSALS, agrees, evaluating
from klent.rollout.grid import Grid, attend, moved

ROOM = 32  # tokens per completion that memory is laid out for at first; doubled whenever it is used up


class Decoder(Protocol):
    """Unfinished rows: ``group_size`` per prompt, prompt by prompt, until some of them are dropped."""

    def start(self) -> Tensor:
        """Read the prompts; logits of every row's first token, ``[P * group_size, V]``."""
        ...

    def step(self, token: Tensor) -> Tensor:
        """Append a token to every row, ``[R]``; logits of the next one, ``[R, V]``."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; returns their new order, in old row numbers."""
        ...


class PlainDecoder:
    """For all models, with the cache of transformers: each row holds a copy of its prompt."""

    def __init__(
        self, model: CausalModel, prompts: Sequence[Sequence[int]], *, group_size: int, pad: int
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.group_size = group_size
        self.pad = pad

    def start(self) -> Tensor:
        logits, self.mask, self.cache = prefill(self.model, self.prompts, pad=self.pad)
        repeat = torch.arange(len(self.prompts), device=logits.device).repeat_interleave(self.group_size)
        self.mask = self.mask[repeat]
        _select(self.cache, repeat)
        return logits[repeat]

    def step(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        output = self.model(
            input_ids=token[:, None],
            attention_mask=self.mask,
            position_ids=self.mask.sum(dim=1, keepdim=True) - 1,
            **reading_cache(self.model, self.cache),
        )
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> list[int]:
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        _select(self.cache, index)
        return list(rows)


def _select(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of a cache, in this order; recurrent layers know no other call for it."""
    cache.reorder_cache(cast("torch.LongTensor", rows))


class ApartDecoder:
    """For models that must not see padding: each prompt with its group is a :class:`PlainDecoder` of its own."""

    def __init__(
        self, model: CausalModel, prompts: Sequence[Sequence[int]], *, group_size: int, pad: int
    ) -> None:
        self.parts = [PlainDecoder(model, [prompt], group_size=group_size, pad=pad) for prompt in prompts]
        self.sizes = [group_size] * len(prompts)

    def start(self) -> Tensor:
        return torch.cat([part.start() for part in self.parts])

    def step(self, token: Tensor) -> Tensor:
        pieces = token.split(self.sizes)
        return torch.cat([part.step(piece) for part, piece in zip(self.parts, pieces, strict=True)])

    def keep(self, rows: Sequence[int]) -> list[int]:
        rows, first, left = sorted(rows), 0, []
        for part, size in zip(self.parts, self.sizes, strict=True):
            kept = [row - first for row in rows if first <= row < first + size]
            first += size
            if kept:
                part.keep(kept)
                left.append((part, len(kept)))
        self.parts, self.sizes = [part for part, _ in left], [size for _, size in left]
        return rows


class RereadDecoder:
    """For models whose cache cannot be used: every step reads the rows again, those of one length together."""

    def __init__(
        self, model: CausalModel, prompts: Sequence[Sequence[int]], *, group_size: int, pad: int
    ) -> None:
        self.model = model
        self.rows = [list(prompt) for prompt in prompts for _ in range(group_size)]
        forward = inspect.signature(whole_model(model).forward).parameters
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in forward else {}

    def start(self) -> Tensor:
        return self._read()

    def step(self, token: Tensor) -> Tensor:
        for row, new in zip(self.rows, token.tolist(), strict=True):
            row.append(new)
        return self._read()

    def keep(self, rows: Sequence[int]) -> list[int]:
        self.rows = [self.rows[row] for row in rows]
        return list(rows)

    def _read(self) -> Tensor:
        logits: dict[int, Tensor] = {}
        for length in {len(row) for row in self.rows}:
            chosen = [i for i, row in enumerate(self.rows) if len(row) == length]
            ids = torch.tensor([self.rows[i] for i in chosen], device=self.model.device)
            output = self.model(input_ids=ids, use_cache=False, **self.options)
            logits |= dict(zip(chosen, output.logits[:, -1], strict=True))
        return torch.stack([logits[i] for i in range(len(self.rows))])


class GroupDecoder:
    """Models with plain attention: a prompt's keys and values are stored once for its group."""

    def __init__(
        self, model: CausalModel, prompts: Sequence[Sequence[int]], *, group_size: int, pad: int
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.group_size = group_size
        self.pad = pad

    def start(self) -> Tensor:
        logits, mask, cache = prefill(self.model, self.prompts, pad=self.pad)
        self.cache = GroupCache(cache, mask, self.group_size)
        self.length = mask.sum(dim=1).repeat_interleave(self.group_size)
        return logits.repeat_interleave(self.group_size, dim=0)

    def step(self, token: Tensor) -> Tensor:
        with attending(self.model, group_attention, self.cache) as attention:
            output = self.model(
                input_ids=token[:, None],
                position_ids=self.length[:, None],
                **reading_cache(self.model, self.cache),
                **attention,
            )
        self.cache.length += 1
        self.length = self.length + 1
        return output.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> list[int]:
        order = self.cache.keep(rows)
        self.length = self.length[order]
        return order


class GroupCache:
    """Keys and values of prompts and of completions; takes the place of a ``Cache`` of transformers.

    Attributes:
        prompts: keys and values of each layer, ``[P, K, L, D]``: prompts padded on the left to ``L``.
        bias: 0 on a prompt's tokens and -inf on its padding, ``[P, 1, 1, L]``.
        slot: the index of each row in the grid of prompts times group, ``[R]``.
        in_order: whether rows fill that grid one after the other: none is missing, and none has moved.
        completions: keys and values of each layer, ``[R, K, room, D]``.
        length: tokens appended so far.
    """

    def __init__(self, prefilled: Any, mask: Tensor, group_size: int) -> None:
        # A DynamicCache; layers without keys and values (recurrent ones) raise: see choose_decoder.
        self.prompts: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in prefilled.layers]
        dtype = self.prompts[0][0].dtype
        self.bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        self.bias.masked_fill_(mask == 0, float("-inf"))
        self.bias = self.bias[:, None, None, :]
        self.group_size = group_size
        self.slot = torch.arange(len(mask) * group_size, device=mask.device)
        self.in_order = True
        self.length = 0
        self.completions = [
            (self._room(keys, ROOM), self._room(values, ROOM)) for keys, values in self.prompts
        ]

    def _room(self, like: Tensor, tokens: int) -> Tensor:
        return like.new_empty(len(self.slot), like.shape[1], tokens, like.shape[3])

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append one token per row, ``[R, K, 1, D]``; all tokens of the completions, ``[R, K, t, D]``."""
        if keys.shape[2] != 1:
            raise ValueError(f"a group cache takes one token at a time, not {keys.shape[2]}")
        at, count = self.length, len(keys)
        pair = self.completions[layer_idx]
        if at == pair[0].shape[2]:
            pair = self.completions[layer_idx] = (_doubled(pair[0]), _doubled(pair[1]))
        for memory, new in zip(pair, (keys, values), strict=True):
            memory[:count, :, at] = new[:, :, 0]
        return pair[0][:count, :, : at + 1], pair[1][:count, :, : at + 1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the next one, padding included."""
        return self.bias.shape[-1] + self.length

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these: the last ones move into the gaps, the others stay where they are."""
        movers, gaps = moved(rows, len(rows))
        order = list(range(len(rows)))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            for pair in self.completions:
                for memory in pair:
                    memory[gaps, :, : self.length] = memory[movers, :, : self.length]
        self.slot = self.slot[order]
        self._drop_prompts()
        return order

    def _drop_prompts(self) -> None:
        """Forget prompts whose rows are all gone."""
        prompt, k = self.slot // self.group_size, self.slot % self.group_size
        left, index = prompt.unique(return_inverse=True)
        if len(left) < len(self.bias):
            self.prompts = [(keys[left], values[left]) for keys, values in self.prompts]
            self.bias = self.bias[left]
            self.slot = index * self.group_size + k
        # Counting is not enough: rows that moved may fill the grid again once other prompts are gone.
        grid = torch.arange(len(self.bias) * self.group_size, device=self.slot.device)
        self.in_order = torch.equal(self.slot, grid)


def _doubled(memory: Tensor) -> Tensor:
    return torch.cat([memory, torch.empty_like(memory)], dim=2)


def _attend(
    layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor, cache: GroupCache, scaling: float
) -> Tensor:
    """Attention over a row's prompt and its completion, as the cache lays them out."""
    grid = Grid(cache.slot, len(cache.bias), cache.group_size, full=cache.in_order)
    shared = cache.prompts[layer.layer_idx]
    return attend(query, key, value, shared, grid, scaling=scaling, bias=cache.bias)


group_attention: AttentionKernel[GroupCache] = AttentionKernel("klent_group", _attend)


def prefill(
    model: CausalModel, prompts: Sequence[Sequence[int]], *, pad: int
) -> tuple[Tensor, Tensor, DynamicCache]:
    """Logits after each prompt, ``[P, V]``, the mask of its padding on the left, and the cache."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    config: Any = model.config
    cache = DynamicCache(config=config)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
        **reading_cache(model, cache),
        logits_to_keep=1,
    )
    return output.logits[:, -1], mask, cache


DecoderKind = type[GroupDecoder] | type[PlainDecoder] | type[ApartDecoder] | type[RereadDecoder]


def choose_decoder(model: CausalModel, *, groups: bool = True) -> DecoderKind:
    """The fastest decoder whose logits are those of each row alone, tried on made-up tokens.

    Args:
        model: the model to sample from.
        groups: whether :class:`GroupDecoder`, which moves rows, may be chosen.

    Raises:
        ModelError: the model cannot be run, or gives a row other numbers beside other rows.
    """
    try:
        with evaluating(model):
            expected = read_alone(model)
    except REFUSALS as error:
        raise ModelError(f"the model cannot be sampled: {first_line(error)}. Use another model") from error
    kinds: list[DecoderKind] = [PlainDecoder, ApartDecoder, RereadDecoder]
    if groups and attention_window(model) is None:  # the trial may be too short to show a window
        kinds.insert(0, GroupDecoder)
    for kind in kinds:
        if agrees(model, lambda: expected, partial(trial, kind, model), rounding=3e-2):
            return kind
    raise ModelError(
        "the model cannot be sampled exactly: the logits of a row depend on the other rows in the batch. Use another "
        "model"
    )


KEPT = [0, 2, 3]  # rows of the trial that go on after its first step


def made_up(model: CausalModel) -> tuple[list[list[int]], Tensor]:
    """Two prompts of different lengths, and three steps of tokens for two rows of each."""
    config = model.config.get_text_config()
    size, longest = config.vocab_size, made_up_length(config)
    prompts = [[(7 * i + k) % size for i in range(length)] for k, length in enumerate((3, longest - 6))]
    tokens = torch.tensor([[(11 * i + 5 * k + 1) % size for k in range(4)] for i in range(3)])
    return prompts, tokens.to(model.device)


def read_alone(model: CausalModel) -> Tensor:
    """The logits of :func:`trial` from whole rows, one at a time, without a cache."""
    prompts, tokens = made_up(model)
    logits = []
    for k in range(4):
        row = torch.cat([torch.tensor(prompts[k // 2], device=tokens.device), tokens[:, k]])
        whole = model(input_ids=row[None], use_cache=False).logits[0]
        logits.append(whole[len(prompts[k // 2]) - 1 :])
    steps = [torch.stack([row[t] for row in logits]) for t in range(4)]
    return torch.cat([*steps[:2], *(step[KEPT] for step in steps[2:])]).float()


def trial(kind: Callable[..., Decoder], model: CausalModel) -> Tensor:
    """Logits of four steps over two prompts of different lengths, a row of which ends after the first."""
    prompts, tokens = made_up(model)
    decoder = kind(model, prompts, group_size=2, pad=0)
    steps = [decoder.start(), decoder.step(tokens[0])]
    order = decoder.keep(KEPT)
    in_order = [order.index(row) for row in KEPT]
    steps += [decoder.step(token[order])[in_order] for token in tokens[1:]]
    return torch.cat(steps).float()

"""Decoding: the logits of the next token for rows that share their prompts.

Two decoders with the same three calls. :class:`GroupDecoder` keeps the keys and values of a prompt once for
its whole group, and those of the completions in memory laid out beforehand::

    prompts      keys [P, heads, prompt length, D]    read once a prompt, by all of its rows together
    completions  keys [R, heads, tokens so far, D]    each row's own

so that a step neither copies what is known already nor reads a prompt once a row. It plugs into the
attention of a transformers model by the library's own interface; a model whose attention does more than
scores and a softmax (a window, a cap, sinks, recurrent layers) is found out by asking it
(:func:`takes_groups`) and goes through :class:`PlainDecoder`, which is transformers' own cache.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

from klent.policies.causal_lm.attention import attending

NAME = "klent_group"  # of the attention function, among those of transformers
ROOM = 32  # tokens a completion that memory is laid out for at first; doubled whenever it is used up


class Decoder(Protocol):
    """Rows under way: ``group_size`` for each prompt, prompt by prompt, until some of them are dropped."""

    def start(self) -> Tensor:
        """Read the prompts; logits of every row's first token, ``[P * group_size, V]``."""
        ...

    def step(self, token: Tensor) -> Tensor:
        """Append a token to every row, ``[R]``; logits of the next one, ``[R, V]``."""
        ...

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these; the order, in old numbers, in which they stand from now on."""
        ...


class PlainDecoder:
    """Any model with a cache of its own: each row holds its prompt."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, group_size: int, pad: int) -> None:
        self.model = model
        self.prompts = prompts
        self.group_size = group_size
        self.pad = pad

    def start(self) -> Tensor:
        logits, self.mask, self.cache = prefill(self.model, self.prompts, pad=self.pad)
        repeat = torch.arange(len(self.prompts), device=logits.device).repeat_interleave(self.group_size)
        self.mask = self.mask[repeat]
        self.cache.batch_select_indices(repeat)
        return logits[repeat]

    def step(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        output = self.model(
            input_ids=token[:, None],
            attention_mask=self.mask,
            position_ids=self.mask.sum(dim=1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.cache.batch_select_indices(index)
        return list(rows)


class GroupDecoder:
    """Models with plain attention: a prompt's keys and values stand once for its group."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, group_size: int, pad: int) -> None:
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
        with attending(self.model, NAME):
            output = self.model(
                input_ids=token[:, None],
                position_ids=self.length[:, None],
                past_key_values=self.cache,
                use_cache=True,
                group_cache=self.cache,
            )
        self.cache.length += 1
        self.length = self.length + 1
        logits: Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        order = self.cache.keep(rows)
        self.length = self.length[order]
        return order


class GroupCache:
    """Keys and values of prompts and of completions; stands where transformers expects a ``Cache``.

    Attributes:
        prompts: keys and values of each layer, ``[P, K, L, D]``: prompts padded on the left to ``L``.
        bias: 0 on a prompt's tokens and -inf on its padding, ``[P, 1, 1, L]``.
        slot: the place of each row in the grid of prompts times group, ``[R]``.
        in_order: whether rows fill that grid one after the other: none is missing, and none has moved.
        length: tokens appended so far.
    """

    def __init__(self, prefilled: Any, mask: Tensor, group_size: int) -> None:
        self.prompts = [(layer.keys, layer.values) for layer in prefilled.layers]
        dtype = self.prompts[0][0].dtype
        self.bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        self.bias.masked_fill_(mask == 0, float("-inf"))
        self.bias = self.bias[:, None, None, :]
        self.group_size = group_size
        self.slot = torch.arange(len(mask) * group_size, device=mask.device)
        self.in_order = True
        self.length = 0
        self.own: list[tuple[Tensor, Tensor]] = [
            tuple(self._room(x, ROOM) for x in pair)  # type: ignore[misc]
            for pair in self.prompts
        ]

    def _room(self, like: Tensor, tokens: int) -> Tensor:
        return like.new_empty(len(self.slot), like.shape[1], tokens, like.shape[3])

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one token a row, ``[R, K, 1, D]``; all of the rows' own tokens so far, ``[R, K, t, D]``."""
        if keys.shape[2] != 1:
            raise ValueError("a group cache takes one token at a time")
        at, count = self.length, len(keys)
        if at == self.own[layer_idx][0].shape[2]:
            self.own[layer_idx] = tuple(
                torch.cat([x, torch.empty_like(x)], dim=2) for x in self.own[layer_idx]
            )  # type: ignore[assignment]
        own = self.own[layer_idx]
        for memory, new in zip(own, (keys, values), strict=True):
            memory[:count, :, at] = new[:, :, 0]
        return own[0][:count, :, : at + 1], own[1][:count, :, : at + 1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the next one, padding included."""
        return self.bias.shape[-1] + self.length

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these: the last ones move into the gaps, the others stay where they are."""
        kept, order = set(rows), list(range(len(rows)))
        gaps = [i for i in order if i not in kept]
        movers = [i for i in rows if i >= len(rows)]
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            for pair in self.own:
                for memory in pair:
                    memory[gaps, :, : self.length] = memory[movers, :, : self.length]
        self.slot = self.slot[order]
        self._drop_prompts()
        return order

    def _drop_prompts(self) -> None:
        """Forget prompts that no row answers any more."""
        prompt, k = self.slot // self.group_size, self.slot % self.group_size
        left, place = prompt.unique(return_inverse=True)
        if len(left) < len(self.bias):
            self.prompts = [(keys[left], values[left]) for keys, values in self.prompts]
            self.bias = self.bias[left]
            self.slot = place * self.group_size + k
        # A count would not do: rows that moved may fill the grid again once the prompts of others are gone.
        grid = torch.arange(len(self.bias) * self.group_size, device=self.slot.device)
        self.in_order = torch.equal(self.slot, grid)


def group_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    group_cache: GroupCache,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of one new token a row over its prompt, kept once a group, and its own tokens.

    Args:
        query: ``[R, heads, 1, D]``.
        key, value: of the rows' own tokens, the new one included, ``[R, K, t, D]``.
        group_cache: where the prompts are.

    Returns:
        ``[R, 1, heads, D]``, and None for weights that nobody keeps.
    """
    if attention_mask is not None or dropout or softcap is not None or s_aux is not None:
        raise ValueError("group attention is scores and a softmax; this model's attention does more")
    rows, heads, _, width = query.shape
    shared_keys, shared_values = group_cache.prompts[module.layer_idx]
    count, kv_heads, length, _ = shared_keys.shape
    q = (query * scaling).view(rows, kv_heads, heads // kv_heads, width)
    grid = _Grid(group_cache.slot, count, group_cache.group_size, full=group_cache.in_order)
    scores = grid.product(q, shared_keys.transpose(2, 3), bias=group_cache.bias)
    own = torch.matmul(q, key.transpose(2, 3))
    weight = torch.cat([scores, own], dim=-1).softmax(dim=-1)
    out = torch.matmul(weight[..., length:], value) + grid.product(weight[..., :length], shared_values)
    return out.view(rows, 1, heads, width), None


class _Grid:
    """Rows laid out prompt by prompt, so that one product serves all rows of a prompt."""

    def __init__(self, slot: Tensor, prompts: int, group_size: int, *, full: bool) -> None:
        self.slot, self.prompts, self.group_size = slot, prompts, group_size
        self.full = full  # then rows stand as the grid does

    def product(self, x: Tensor, other: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """``x[r] @ other[prompt of r] + bias``: ``[R, K, r, A]`` by ``[P, K, A, B]``."""
        _, kv_heads, repeat, inner = x.shape
        if not self.full:
            laid = x.new_zeros(self.prompts * self.group_size, kv_heads, repeat, inner)
            x = laid.index_copy_(0, self.slot, x)
        x = x.view(self.prompts, self.group_size, kv_heads, repeat, inner).transpose(1, 2)
        out = torch.matmul(x.reshape(self.prompts, kv_heads, self.group_size * repeat, inner), other)
        if bias is not None:
            out += bias
        out = out.view(self.prompts, kv_heads, self.group_size, repeat, -1).transpose(1, 2)
        out = out.reshape(self.prompts * self.group_size, kv_heads, repeat, -1)
        return out if self.full else out.index_select(0, self.slot)


def prefill(model: Any, prompts: Sequence[Sequence[int]], *, pad: int) -> tuple[Tensor, Tensor, Any]:
    """Logits after each prompt, ``[P, V]``, the mask of its padding at the left, and the cache."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    cache = DynamicCache(config=model.config)
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1], mask, cache


@torch.no_grad()
def takes_groups(model: Any) -> bool:
    """Whether :class:`GroupDecoder` gives the model's own logits, asked on a few made-up tokens.

    A model that looks at a window only is refused here, since the question is too short to find it out.
    """
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return False
    size = config.vocab_size
    prompts = [[(7 * i + k) % size for i in range(3 + 2 * k)] for k in range(2)]
    tokens = torch.tensor([[(11 * i + 5 * k + 1) % size for k in range(4)] for i in range(3)])
    answers = []
    try:
        for kind in (PlainDecoder, GroupDecoder):
            decoder: Decoder = kind(model, prompts, group_size=2, pad=0)
            found = [decoder.start(), decoder.step(tokens[0].to(model.device))]
            order = decoder.keep([0, 2, 3])
            found += [decoder.step(t[order].to(model.device))[_inverse(order, [0, 2, 3])] for t in tokens[1:]]
            answers.append(torch.cat(found).float())
    except (ValueError, RuntimeError, TypeError, KeyError, IndexError, AttributeError):
        return False
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 3e-2
    apart = (answers[0] - answers[1]).abs().max()
    return bool(apart <= tolerance * answers[0].abs().max().clamp_min(1.0))


def _inverse(order: Sequence[int], wanted: Sequence[int]) -> list[int]:
    return [list(order).index(row) for row in wanted]


AttentionInterface.register(NAME, group_attention)

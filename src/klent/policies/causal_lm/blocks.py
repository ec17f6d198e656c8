"""Attention of packed rows, computed where a token sees and nowhere else.

A row of a prompt and C completions of n tokens has (P + C·n)² pairs of tokens under one mask, and needs

    P²/2                 the prompt, causal
    C · n · (P + n)      every completion over its prompt and itself

which for a prompt of 200 and 8 completions of 100 is a quarter. :func:`block_attention` takes the row apart,
attends in each part, and puts the answers back in place. transformers calls it by its name.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "klent_blocks"  # of the attention function, among those of transformers


@dataclass(frozen=True)
class Blocks:
    """Where the tokens of packed rows are; places count through the flattened ``[R * L]`` grid.

    Attributes:
        prompt: each row's prompt, ``[R, P]``, padded on the right with place 0.
        own: each completion's tokens, ``[C, T]``, padded likewise.
        row: the row of each completion, ``[C]``.
        mask: added to the scores of completions over ``[prompt, own]``, 0 or the lowest number,
            ``[C, 1, T, P + T]``.
        back: for each token of the grid its place in ``[R * P + C * T]`` answers, ``[R * L]``.
    """

    prompt: Tensor
    own: Tensor
    row: Tensor
    mask: Tensor
    back: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Blocks":
        """The same on a device, the mask in the model's numbers."""
        mask = self.mask.clamp_min(torch.finfo(dtype).min).to(device, dtype)
        prompt, own, row, back = (t.to(device) for t in (self.prompt, self.own, self.row, self.back))
        return Blocks(prompt, own, row, mask, back)


def find_blocks(owner: Tensor) -> Blocks:
    """The blocks of rows whose tokens belong to ``owner``: 0 the prompt, k the k-th completion, -1 padding.

    Args:
        owner: ``[R, L]``; in each row the prompt, then its completions, then padding.
    """
    rows, length = owner.shape
    prompts = (owner == 0).sum(dim=1)
    own = [
        (r, places)
        for r in range(rows)
        for k in range(1, int(owner[r].max()) + 1)
        if len(places := (owner[r] == k).nonzero()[:, 0])  # a completion of one token has no input of its own
    ]
    width = int(prompts.max())
    longest = max((len(places) for _, places in own), default=1)
    prompt = torch.zeros(rows, width, dtype=torch.long)
    place = torch.zeros(len(own), longest, dtype=torch.long)
    mask = torch.full((len(own), longest, width + longest), torch.finfo(torch.float32).min)
    mask[:, :, width:].masked_fill_(torch.ones(longest, longest, dtype=torch.bool).tril(), 0.0)
    back = torch.zeros(rows * length, dtype=torch.long)
    for r, count in enumerate(prompts.tolist()):
        prompt[r, :count] = r * length + torch.arange(count)
        back[r * length : r * length + count] = r * width + torch.arange(count)
    for c, (r, places) in enumerate(own):
        place[c, : len(places)] = r * length + places
        back[r * length + places] = rows * width + c * longest + torch.arange(len(places))
        mask[c, :, : int(prompts[r])] = 0.0
    return Blocks(prompt, place, torch.tensor([r for r, _ in own], dtype=torch.long), mask[:, None], back)


def block_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    blocks: Blocks,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows, block by block.

    Args:
        query: ``[R, heads, L, D]``.
        key, value: ``[R, K, L, D]``.
        blocks: where the prompts and completions are.

    Returns:
        ``[R, L, heads, D]``; what stands at padding means nothing. None for weights that nobody keeps.
    """
    if attention_mask is not None or dropout or softcap is not None or s_aux is not None:
        raise ValueError("block attention is scores and a softmax; this model's attention does more")
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    q, k, v = (x.transpose(1, 2).reshape(rows * length, -1, width) for x in (query, key, value))

    def take(x: Tensor, places: Tensor) -> Tensor:  # [places, heads of x, tokens, D]
        return x.index_select(0, places.flatten()).view(*places.shape, -1, width).transpose(1, 2)

    keys, values = take(k, blocks.prompt), take(v, blocks.prompt)
    wide_keys, wide_values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
    prompt = scaled_dot_product_attention(
        take(q, blocks.prompt), wide_keys, wide_values, is_causal=True, scale=scaling
    )
    answers = [prompt.transpose(1, 2).flatten(0, 1)]
    if len(blocks.own):
        keys, values = (
            torch.cat([shared.index_select(0, blocks.row), take(x, blocks.own)], dim=2)
            for shared, x in ((keys, k), (values, v))
        )
        own = take(q, blocks.own)
        count, _, tokens, _ = own.shape
        # The heads that share a key stand behind one another as queries: no key is copied.
        own = own.reshape(count, kv_heads, -1, width)
        mask = blocks.mask.repeat(1, 1, heads // kv_heads, 1)
        own = scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scaling)
        own = own.view(count, heads, tokens, width)
        answers.append(own.transpose(1, 2).flatten(0, 1))
    out = torch.cat(answers).index_select(0, blocks.back)
    return out.view(rows, length, heads, width), None


AttentionInterface.register(NAME, block_attention)

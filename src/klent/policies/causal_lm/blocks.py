"""Attention of packed rows, computed only where a token sees another.

A row of a prompt and C completions of n tokens has (P + C·n)² pairs of tokens under one mask, and needs

    P²/2                 the prompt, causal
    C · n · (P + n)      every completion over its prompt and itself

which for a prompt of 200 and 8 completions of 100 is a quarter. :data:`block_attention` takes the row apart,
attends in each part, and puts the outputs back in their positions. Where several prompts stand in a row, each is
a part.

What a completion sees is told by a mask, of n · (P + n) numbers for each. Where these would be too many, each
completion is a plain causal sequence behind a copy of its prompt: P² pairs more for each, and no mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from klent.policies.causal_lm.attention import AttentionKernel, AttentionLayer

LARGEST_MASK = 1 << 26  # numbers: 128 MB in bfloat16 before it is repeated for the heads of a key


@dataclass(frozen=True)
class Blocks:
    """Where the tokens of packed rows are; an index counts through the flattened ``[R * L]`` grid.

    Attributes:
        prompt: indices of each prompt, ``[S, P]``, padded on the right with 0.
        completion: indices of each completion's tokens, ``[C, T]``, padded likewise.
        behind: the prompt of each completion, ``[C]``.
        mask: added to the scores of completions over ``[prompt, completion]``, 0 or the lowest number,
            ``[C, 1, T, P + T]``; None where they are sequences.
        sequence: where there is no mask, indices of each completion behind its prompt, ``[C, P + T]``, padded on the
            right with 0.
        output: for each token of the grid its index among the outputs, prompts first, ``[R * L]``.
    """

    prompt: Tensor
    completion: Tensor
    behind: Tensor
    mask: Tensor | None
    sequence: Tensor | None
    output: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Blocks":
        """The same on a device, the mask in the model's numbers."""
        mask = None if self.mask is None else self.mask.clamp_min(torch.finfo(dtype).min).to(device, dtype)
        sequence = None if self.sequence is None else self.sequence.to(device)
        indices = (self.prompt, self.completion, self.behind, self.output)
        prompt, completion, behind, output = (index.to(device) for index in indices)
        return Blocks(prompt, completion, behind, mask, sequence, output)


def find_blocks(owner: Tensor, segment: Tensor) -> Blocks:
    """The blocks of rows whose tokens belong to ``owner``: 0 the prompt, k the k-th completion, -1 padding.

    Args:
        owner: ``[R, L]``; in each segment the prompt, then its completions; behind the last one padding.
        segment: which prompt of its row, ``[R, L]``.
    """
    length = owner.shape[1]
    prompts: list[Tensor] = []
    completions: list[tuple[int, Tensor]] = []
    for r in range(len(owner)):
        # A completion of one token is never an input, so a segment's owners may leave numbers out.
        parts = torch.stack([segment[r], owner[r]])[:, owner[r] >= 0]
        kinds, counts = parts.unique_consecutive(dim=1, return_counts=True)
        start = r * length
        for kind, count in zip(kinds[1].tolist(), counts.tolist(), strict=True):
            here = torch.arange(start, start + count)
            start += count
            if kind:
                completions.append((len(prompts) - 1, here))
            else:
                prompts.append(here)
    width = max(map(len, prompts))
    longest = max((len(positions) for _, positions in completions), default=1)
    masked = len(completions) * longest * (width + longest) <= LARGEST_MASK
    line = longest if masked else width + longest  # outputs of a completion
    prompt = torch.zeros(len(prompts), width, dtype=torch.long)
    completion = torch.zeros(len(completions), longest, dtype=torch.long)
    mask = sequence = None
    if masked:
        mask = torch.full((len(completions), longest, width + longest), torch.finfo(torch.float32).min)
        mask[:, :, width:].masked_fill_(torch.ones(longest, longest, dtype=torch.bool).tril(), 0.0)
    else:
        sequence = torch.zeros(len(completions), line, dtype=torch.long)
    output = torch.zeros(owner.numel(), dtype=torch.long)
    for s, positions in enumerate(prompts):
        prompt[s, : len(positions)] = positions
        output[positions] = s * width + torch.arange(len(positions))
    for c, (s, positions) in enumerate(completions):
        completion[c, : len(positions)] = positions
        behind = len(prompts[s])
        first = len(prompts) * width + c * line + (0 if masked else behind)
        output[positions] = first + torch.arange(len(positions))
        if mask is not None:
            mask[c, :, :behind] = 0.0
        if sequence is not None:
            sequence[c, : behind + len(positions)] = torch.cat([prompts[s], positions])
    behinds = torch.tensor([s for s, _ in completions], dtype=torch.long)
    return Blocks(prompt, completion, behinds, None if mask is None else mask[:, None], sequence, output)


def _attend(
    layer: AttentionLayer, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float
) -> Tensor:
    """Attention of packed rows, ``[R, L, heads, D]``; outputs at padding mean nothing."""
    rows, heads, length, width = query.shape
    kv_heads = key.shape[1]
    q, k, v = (x.transpose(1, 2).reshape(rows * length, -1, width) for x in (query, key, value))

    def take(x: Tensor, index: Tensor) -> Tensor:  # [blocks, heads of x, tokens, D]
        return x.index_select(0, index.flatten()).view(*index.shape, -1, width).transpose(1, 2)

    def causal(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Each line of tokens sees itself; padding behind it is seen by padding alone."""
        keys, values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
        out = scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)
        return out.transpose(1, 2).flatten(0, 1)

    keys, values = take(k, blocks.prompt), take(v, blocks.prompt)
    outputs = [causal(take(q, blocks.prompt), keys, values)]
    if blocks.sequence is not None:
        queries, keys, values = (take(x, blocks.sequence) for x in (q, k, v))
        outputs.append(causal(queries, keys, values))
    elif len(blocks.completion):
        assert blocks.mask is not None
        keys, values = (
            torch.cat([shared.index_select(0, blocks.behind), take(x, blocks.completion)], dim=2)
            for shared, x in ((keys, k), (values, v))
        )
        queries = take(q, blocks.completion)
        count, _, tokens, _ = queries.shape
        # The heads that share a key follow one another as queries: no key is copied.
        queries = queries.reshape(count, kv_heads, -1, width)
        mask = blocks.mask.repeat(1, 1, heads // kv_heads, 1)
        completion = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
        outputs.append(completion.view(count, heads, tokens, width).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, blocks.output).view(rows, length, heads, width)


block_attention: AttentionKernel[Blocks] = AttentionKernel("klent_blocks", _attend)

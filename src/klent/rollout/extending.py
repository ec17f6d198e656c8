"""Keys and values kept between the turns of an episode: a turn reads what is new, and nothing again.

When a row ends, its keys and values are taken out of the decoder; the next turn begins from them. What it reads is
the turn's last token, which nothing has read yet, and what the environment said. Models whose cache is more than
the keys and values of every token (a window, a recurrent state) read each turn from the start.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from klent.models.exact import made_up_length
from klent.policies.causal_lm.model import CausalModel, reading_cache
from klent.policies.causal_lm.probe import agrees
from klent.rollout.decoding import Decoder, DecoderKind, GroupDecoder, PlainDecoder

Kept = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, ``[K, length, D]``, without padding."""


def keep_row(decoder: Decoder, row: int) -> Kept | None:
    """The keys and values of a row of a decoder as it stands; None where it has others than those of each token."""
    if isinstance(decoder, GroupDecoder):
        cache = decoder.cache
        prompt = int(cache.slot[row]) // cache.group_size
        read = cache.bias[prompt, 0, 0] == 0
        return [
            (
                _behind(keys[prompt][:, read], own[0][row, :, : cache.length]),
                _behind(values[prompt][:, read], own[1][row, :, : cache.length]),
            )
            for (keys, values), own in zip(cache.prompts, cache.completions, strict=True)
        ]
    if not isinstance(decoder, PlainDecoder):
        return None
    read = decoder.mask[row].bool()
    layers: list[Any] = list(decoder.cache.layers)
    pairs: Kept = [(layer.keys, layer.values) for layer in layers if getattr(layer, "keys", None) is not None]
    if len(pairs) < len(layers) or any(keys.shape[2] != len(read) for keys, _ in pairs):
        return None
    return [(keys[row][:, read].clone(), values[row][:, read].clone()) for keys, values in pairs]


def _behind(before: Tensor, after: Tensor) -> Tensor:
    return torch.cat([before, after], dim=1)


class ExtendingDecoder(PlainDecoder):
    """Rows that go on from kept keys and values.

    Args:
        model: the model.
        prompts: all tokens of each row.
        kept: of each row, the keys and values of its first tokens.
        pad: fills rows up.
    """

    def __init__(
        self, model: CausalModel, prompts: Sequence[Sequence[int]], kept: Sequence[Kept], *, pad: int
    ) -> None:
        super().__init__(model, prompts, group_size=1, pad=pad)
        self.kept = kept

    def start(self) -> Tensor:
        """Read what is new, behind what is kept; both are padded on the left."""
        device = self.model.device
        old = [row[0][0].shape[1] for row in self.kept]
        new = [prompt[length:] for prompt, length in zip(self.prompts, old, strict=True)]
        most, width = max(old), max(map(len, new))
        ids = torch.tensor([[self.pad] * (width - len(n)) + list(n) for n in new], device=device)
        self.mask = torch.tensor(
            [
                [0] * (most - o) + [1] * o + [0] * (width - len(n)) + [1] * len(n)
                for o, n in zip(old, new, strict=True)
            ],
            device=device,
        )
        config: Any = self.model.config
        self.cache = DynamicCache(config=config)
        for index, layer in enumerate(zip(*self.kept, strict=True)):
            keys, values = (torch.stack([_padded(pair[side], most) for pair in layer]) for side in (0, 1))
            self.cache.update(keys, values, index)
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(dim=1) - 1).clamp_min(0)[:, -width:],
            **reading_cache(self.model, self.cache),
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _padded(states: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, length - states.shape[1], 0))


def can_extend(model: CausalModel, kind: DecoderKind) -> bool:
    """Whether rows that go on from kept keys and values have the logits of whole rows, tried on made-up tokens."""
    config = model.config.get_text_config()
    longest = made_up_length(config)
    rows = [[(7 * i + k) % config.vocab_size for i in range(length)] for k, length in enumerate((longest, 9))]

    def whole() -> Tensor:
        read = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False) for row in rows]
        return torch.cat([output.logits[0, -2:] for output in read]).float()

    def extended() -> Tensor:
        decoder = kind(model, [row[:3] for row in rows], group_size=1, pad=0)
        decoder.start()
        decoder.step(torch.tensor([row[3] for row in rows], device=model.device))
        kept = [keep_row(decoder, row) for row in range(2)]
        known = [one for one in kept if one is not None]
        if len(known) < len(rows):
            raise ValueError("nothing is kept")
        after = ExtendingDecoder(model, [row[:-1] for row in rows], known, pad=0)
        first = after.start()
        second = after.step(torch.tensor([row[-1] for row in rows], device=model.device))
        return torch.stack([first, second], dim=1).flatten(0, 1).float()

    return agrees(model, whole, extended, rounding=3e-2)

"""How many rows decode together: as many as memory holds beside what is there already."""

import os
from collections.abc import Callable
from typing import Any

import torch

from klent.kit.text import plural
from klent.policies.causal_lm.model import CausalModel

SHARE = 0.5  # of the free memory: the rest is for what is not counted, and for allocators that keep blocks
COPIES = 2  # of the keys and values while a cache grows
LOGITS = 6  # float32 numbers for each word of the vocabulary while a token is drawn
UPDATE = 12  # bytes per trained weight of gradient and AdamW's two means, which are not there before the first update
STATES = 8  # numbers the width of the MLP for each prompt token that is read


class Rows:
    """What an engine decodes together: what was asked for, or what fits.

    Args:
        asked: rows; None = what fits, counted once for each power of two of the prompts' length, so that a run goes
            on as it began.
        note: told of what was counted on a GPU, and of what did not fit after all.
    """

    def __init__(self, asked: int | None, note: Callable[[str], None]) -> None:
        self.asked, self.note = asked, note
        self.counted: dict[tuple[int, int], int] = {}

    def at_once(self, model: CausalModel, longest: int, max_tokens: int, group_size: int) -> int:
        """Rows of such prompts and completions; see :func:`rows_that_fit`."""
        if self.asked is not None:
            return self.asked
        longest = 1 << (max(longest, 1) - 1).bit_length()
        if (longest, group_size) not in self.counted:
            rows = rows_that_fit(model, longest=longest, max_tokens=max_tokens, group_size=group_size)
            self.counted[longest, group_size] = rows
            if model.device.type == "cuda":
                self.note(
                    f"rollout.rows: up to {plural(rows, 'row')} of {longest} + {max_tokens} tokens decode together"
                )
        return self.counted[longest, group_size]

    def at_most(self, rows: int) -> None:
        """More did not fit."""
        if rows >= min([*self.counted.values(), *([] if self.asked is None else [self.asked])]):
            return
        self.note(f"rollout.rows: memory ran out, from now on {plural(rows, 'row')} at once")
        self.counted = {key: min(rows, count) for key, count in self.counted.items()}
        self.asked = None if self.asked is None else rows


def rows_that_fit(model: CausalModel, *, longest: int, max_tokens: int, group_size: int) -> int:
    """Rows that fit, a power of two so that it does not move with every megabyte; at least 1.

    Args:
        model: decodes.
        longest: tokens of the longest prompt.
        max_tokens: that follow it.
        group_size: rows of a prompt, which is read once.
    """
    needed = bytes_per_row(model, longest=longest, max_tokens=max_tokens, group_size=group_size)
    trained = sum(p.numel() for _, p in model.named_parameters() if p.requires_grad)
    rows = max(1, int(SHARE * (free_bytes(model.device) - UPDATE * trained) / needed))
    return 1 << (rows.bit_length() - 1)


def bytes_per_row(model: CausalModel, *, longest: int, max_tokens: int, group_size: int) -> float:
    """Memory that a row takes at most while it decodes: keys, values, logits, and its share in reading a prompt."""
    config: Any = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = getattr(config, "num_hidden_layers", None) or 1
    number = model.dtype.itemsize
    cache = COPIES * 2 * layers * kv_heads * width * number * (longest + max_tokens)
    states = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    reading = STATES * states * number * longest / group_size
    return float(cache + LOGITS * 4 * config.vocab_size + reading)


def free_bytes(device: torch.device) -> int:
    """Memory to count on: of a GPU what is free now, with what torch keeps in reserve; else half of the machine's.

    What other programs leave of a machine's memory changes by the minute, and with it would how rows decode together
    and so how their numbers round: a run could not be repeated.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return whole_bytes(device) // 2


def whole_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of the machine: the same whenever it is asked."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

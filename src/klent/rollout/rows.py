"""Completions under way: what an engine knows of each row, and of the question that they answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from klent.rollout.extending import Kept
from klent.streams.prompt import Prompt

Memory = dict[tuple[int, ...], tuple[Kept, ...]]
"""Tokens that were read -> their keys and values, of each model that decodes."""


@dataclass
class Row:
    """A completion under way."""

    number: int  # its place in the answer
    prompt: int  # its prompt's place in the question
    room: int  # the most tokens that it may have
    draws: int  # its row of random numbers
    read: int  # tokens that were read for it before its first
    tokens: list[int] = field(default_factory=list)
    numbers: list[tuple[float, ...]] = field(default_factory=list)  # of each: those of Sampled, and more
    table: Tensor | None = None  # the same, where a device has drawn them all
    stopped: bool = False

    def columns(self) -> tuple[Tensor, ...]:
        """What is known of the tokens, number by number."""
        return (torch.tensor(self.numbers) if self.table is None else self.table).unbind(dim=1)


class Asked(NamedTuple):
    """A question to the engine: prompts and their tokens, the rows' random numbers, and what is kept of them."""

    prompts: Sequence[Prompt]
    encoded: list[list[int]]
    group_size: int
    uniform: Tensor
    known: Memory | None


def found_in(known: Memory | None, prompts: Sequence[Prompt], group_size: int) -> list[tuple[Kept, ...]]:
    """What was kept of these prompts; nothing unless it is there for each of them."""
    if not known or group_size != 1:
        return []
    found = [known.get(tuple((prompt.token_ids or [])[: prompt.read])) for prompt in prompts]
    return [one for one in found if one is not None] if None not in found else []

"""The processes that share a step: denominators, metrics and gradients add up over them."""

from typing import Protocol

import torch
from torch import Tensor


class World(Protocol):
    """Sums over ranks. A sum over one rank is the number itself."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """``value`` added up over all ranks, the same on each; every rank must call it."""
        ...


class OneProcess:
    """The world of a run on one device."""

    rank = 0
    size = 1

    def sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value


def largest(count: int, world: World) -> int:
    """The largest of the ranks' counts; every rank must call it.

    >>> largest(3, OneProcess())
    3
    """
    counts = torch.zeros(world.size, dtype=torch.long)
    counts[world.rank] = count
    return int(world.sum(counts).max())

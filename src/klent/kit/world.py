"""The processes that share a step: each samples and trains a part of the episodes, and all know all of them."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the command line asks here which rank it is, before anything heavy is imported
    from torch import Tensor


class World(Protocol):
    """What ranks say to each other. Every rank must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process, from 0; the first one writes the run's folder."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum(self, value: "Tensor") -> "Tensor":
        """``value`` added up over all ranks, the same on each."""
        ...

    def gather(self, said: bytes) -> list[bytes]:
        """What each rank has to say, in the order of the ranks, the same on each."""
        ...


class OneProcess:
    """The world of a run on one device."""

    rank = 0
    size = 1

    def sum(self, value: "Tensor") -> "Tensor":
        """The value itself."""
        return value

    def gather(self, said: bytes) -> list[bytes]:
        """The one thing that was said."""
        return [said]


def started() -> int:
    """How many processes torchrun started, as it says by the environment; 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """Whether this process is a rank other than the first, which alone speaks and writes."""
    return started() > 1 and os.environ.get("RANK", "0") != "0"


def shares(costs: Sequence[float], size: int) -> list[list[int]]:
    """Items for each of ``size`` ranks, of costs as even as giving the dearest first to the idlest makes them.

    The same on every rank, and a rank's items are in their order.

    >>> shares([1.0, 9.0, 4.0, 4.0], 2)
    [[1], [0, 2, 3]]
    """
    given: list[list[int]] = [[] for _ in range(size)]
    load = [0.0] * size
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        idlest = min(range(size), key=lambda rank: (load[rank], len(given[rank]), rank))
        given[idlest].append(item)
        load[idlest] += costs[item]
    return [sorted(items) for items in given]

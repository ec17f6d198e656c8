"""Ranks that are threads of one process, for tests of what ranks say to each other."""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

Made, Given = TypeVar("Made"), TypeVar("Given")


class Threads:
    """A world of threads that meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=60)
        self.values: list[object] = [None] * size

    def seat(self, rank: int) -> "Seat":
        return Seat(self, rank)


class Seat:
    """One thread's place in it; a klent.kit.world.World."""

    def __init__(self, world: Threads, rank: int) -> None:
        self.world = world
        self.rank = rank
        self.size = world.size

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._heard(value.clone())).sum(0)

    def gather(self, said: bytes) -> list[bytes]:
        return self._heard(said)

    def _heard(self, said: Given) -> list[Given]:
        self.world.values[self.rank] = said
        self.world.barrier.wait()
        heard = list(self.world.values)
        self.world.barrier.wait()
        return heard


def together(make: Callable[[Seat], Made], work: Callable[[Made], Given], size: int = 2) -> list[Given]:
    """What ``work`` returns on each rank; what it works with is made one after the other, as seeds are global."""
    world, ends, errors = Threads(size), {}, []
    made = [make(world.seat(rank)) for rank in range(size)]

    def run(rank: int) -> None:
        try:
            ends[rank] = work(made[rank])
        except BaseException as error:
            errors.append(error)
            world.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not errors, errors
    return [ends[rank] for rank in range(size)]

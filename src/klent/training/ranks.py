"""The world of a run that torchrun started as several processes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from klent.errors import ConfigError, KlentError, RunError
from klent.kit.world import OneProcess, World, started

LAUNCHED = "torchrun --nproc-per-node 2 -m klent train RECIPE"
PATIENCE = timedelta(minutes=30)
"""How long ranks wait for one that samples longer than they."""


class Ranks:
    """A :class:`klent.kit.world.World` of processes that torch.distributed has joined."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, value: Tensor) -> Tensor:
        """``value`` added up over all ranks, the same on each."""
        total = value.detach().clone().contiguous()
        _said(lambda: dist.all_reduce(total), self.rank)
        return total

    def gather(self, said: bytes) -> list[bytes]:
        """What each rank has to say, in the order of the ranks, the same on each."""
        sizes = torch.zeros(self.size, dtype=torch.long)
        sizes[self.rank] = len(said)
        sizes = self.sum(sizes)
        mine = torch.zeros(int(sizes.max()), dtype=torch.uint8)
        mine[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else mine[:0]
        heard = [torch.empty_like(mine) for _ in range(self.size)]
        _said(lambda: dist.all_gather(heard, mine), self.rank)
        return [row[:size].numpy().tobytes() for row, size in zip(heard, sizes.tolist(), strict=True)]


@contextmanager
def joined(distributed: Literal["auto", "none", "ddp", "fsdp"]) -> Iterator[World]:
    """The ranks of this run, as torchrun tells of them by the environment; one process where it did not start it.

    Args:
        distributed: of the recipe: ``auto`` takes what there is, ``ddp`` and ``fsdp`` want several processes,
            ``none`` one.

    Raises:
        ConfigError: there are other processes than the recipe wants.
        RunError: a rank has ended while the others waited for it.
    """
    size = started()
    if distributed in ("ddp", "fsdp") and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            f"distributed is {distributed}, and this is one process: WORLD_SIZE is not set. Start the ranks with "
            f"`{LAUNCHED}`, or go on alone with distributed=auto"
        )
    if distributed == "none" and size > 1:
        raise ConfigError(
            f"distributed is none, and {size} processes were started: each would train the whole run. Start one, or "
            "set distributed: auto"
        )
    if size == 1:
        yield OneProcess()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    ranks = Ranks()
    try:
        yield ranks
    except KlentError:
        raise
    except RuntimeError as error:
        if not _of_others(error):
            raise
        raise _unreachable(ranks.rank, error) from error
    finally:
        dist.destroy_process_group()


def from_first(world: World, say: Callable[[], bytes]) -> bytes:
    """What the first rank says, on every rank; only there is it asked."""
    return world.gather(say() if world.rank == 0 else b"")[0]


def _said(speak: Callable[[], object], rank: int) -> None:
    try:
        speak()
    except RuntimeError as error:  # gloo's and nccl's errors alike
        raise _unreachable(rank, error) from error


def _of_others(error: RuntimeError) -> bool:
    """Whether another rank is not there: where weights are sharded, any pass may be the first to notice."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in said for word in ("gloo", "nccl", "closed by peer")
    )


def _unreachable(rank: int, error: RuntimeError) -> RunError:
    first = str(error).splitlines()[0][:160]
    return RunError(
        f"rank {rank} cannot reach the other ranks: {first}. One of them has ended, and says why. The run goes "
        "on from its newest checkpoint with `klent resume RUN`, on as many ranks as you like"
    )

"""Segments of a robot as a task: each imitated, or two compared; and starts of episodes that are held out."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from klent.config import SegmentSettings
from klent.kit.seeds import derive_seed
from klent.streams.prompt import Prompt
from klent.tasks.pool import EnvironmentPool
from klent.tasks.segments import Comparisons, Segments, read_segments
from klent.tasks.trajectories import best

open_segments: Callable[[Path], Segments] = cache(read_segments)
"""The segments of a collection, read once in a process."""


class SegmentTask:
    """A :class:`klent.tasks.task.Task` whose prompts name segments: one to imitate, or a better and a worse one.

    Held out are starts of episodes, by their seeds: no segment begins there.

    Args:
        section: the collection, and what is made of it.
        seed: of the run; decides order and pairs.
        base: folder from which the collection's path is looked up.

    Raises:
        DataError: the collection is not complete, or none of its segments is worth more than another.
    """

    def __init__(self, section: SegmentSettings, *, seed: int, base: Path = Path()) -> None:
        self.environments: EnvironmentPool | None = None
        self.name = Path(section.segments).name
        self.seed = seed
        segments = open_segments(base / section.segments)
        worth = segments.worth[section.by]
        kept = (
            range(len(segments))
            if section.keep is None
            else best(range(len(segments)), worth.tolist(), section.keep)
        )
        self.kept = [segments.numbers[place] for place in kept]
        self.comparisons: Comparisons | None = None
        if section.compare is not None:
            count = None if section.compare == "all" else section.compare
            self.comparisons = Comparisons(worth[list(kept)], count=count, seed=seed)

    def train(self, position: int) -> Prompt:
        """The segment, or the two, at a position; every segment comes once before one comes again."""
        if self.comparisons is not None:
            return self._prompt(position, [self.kept[place] for place in self.comparisons.pair(position)])
        turn, place = divmod(position, len(self.kept))
        return self._prompt(position, [self.kept[_order(self.seed, turn, len(self.kept))[place]]])

    def heldout(self, count: int) -> list[Prompt]:
        """Starts of episodes."""
        seeds = (derive_seed(self.seed, "heldout", index) >> 32 for index in range(count))
        return [Prompt(f"{self.name}/start/{seed}", "", {"seed": seed, "segments": []}) for seed in seeds]

    def fit(self, train: Callable[[Prompt], None] | None, heldout: Callable[[Prompt], None]) -> int:
        """Whether the engine has the segments; nothing is left out."""
        (train or heldout)(self.train(0))
        return 0

    def _prompt(self, position: int, numbers: Sequence[int]) -> Prompt:
        return Prompt(f"{self.name}/{position}", "", {"segments": list(numbers)})


@cache
def _order(seed: int, turn: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", turn))
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order

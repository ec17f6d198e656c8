"""A run on several ranks: the first one writes the folder and asks the rewards, the others do as it does.

Each rank runs the same program on the same episodes, so that organs, evaluations and metrics come out alike. A
follower has a folder of its own, which goes with it, and a console that is silent.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from klent.errors import ConfigError
from klent.kit.world import World
from klent.runs.folder import LOGS, RunFolder
from klent.streams.episode import Episode
from klent.tasks import Scores
from klent.tasks.returns import Judge
from klent.training.ranks import from_first


class SharedJudge:
    """A :class:`klent.tasks.returns.Judge` that the first rank asks, for all of them: a reward is called once.

    Args:
        judge: of this rank; on followers it is not asked.
        world: the ranks.
    """

    def __init__(self, judge: Judge, world: World) -> None:
        self.judge = judge
        self.world = world

    def score_episodes(self, episodes: Sequence[Episode]) -> Scores:
        """The rewards of these episodes, which every rank has."""

        def say() -> bytes:
            return json.dumps(asdict(self.judge.score_episodes(episodes))).encode()

        scores = json.loads(from_first(self.world, say))
        return Scores(**{**scores, "notes": tuple(scores["notes"])})


def meet(world: World) -> None:
    """Wait until every rank is here."""
    world.sum(torch.zeros(()))


def leads(world: World) -> bool:
    """Whether this process speaks and writes."""
    return world.rank == 0


@contextmanager
def followers_folder(run: Path) -> Iterator[RunFolder]:
    """A folder for what a follower would write, gone when it ends."""
    with (
        tempfile.TemporaryDirectory(prefix="klent-rank-") as scratch,
        RunFolder.create(Path(scratch) / run.name) as folder,
    ):
        yield folder


def copy_logs(run: Path, folder: RunFolder) -> None:
    """Give a follower what the run has written so far."""
    for name in LOGS:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder.path / name)


def refuse_idle(prompts_per_step: int, world: World) -> None:
    """Refuse more ranks than there are prompts: one would sample nothing in every step.

    Raises:
        ConfigError: there are.
    """
    if prompts_per_step < world.size:
        raise ConfigError(
            f"prompts_per_step is {prompts_per_step}, and there are {world.size} ranks, each of which samples "
            "whole prompts. Raise it, or start fewer ranks"
        )

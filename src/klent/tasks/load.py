"""From a recipe's ``task`` section to the task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path

from klent.config import (
    EnvironmentSettings,
    FileSettings,
    GymSettings,
    NoiseSettings,
    SegmentSettings,
    TrajectorySettings,
)
from klent.config.sections import read_task
from klent.errors import ConfigError
from klent.tasks.data import DataTask
from klent.tasks.gym import GymTask
from klent.tasks.noise import NoiseTask
from klent.tasks.segment_task import SegmentTask
from klent.tasks.starts import EnvironmentTask
from klent.tasks.task import Task
from klent.tasks.trajectories import TrajectoryTask


@dataclass(frozen=True)
class _Wanted:
    """What a run asks of its task, whatever the section."""

    seed: int
    heldout: int
    needed: tuple[str, ...]
    base: Path


def load_task(
    section: GymSettings
    | FileSettings
    | EnvironmentSettings
    | NoiseSettings
    | SegmentSettings
    | Mapping[str, object],
    *,
    seed: int,
    heldout: int,
    needed: Sequence[str] = (),
    base: Path = Path("."),
) -> Task:
    """The task that a recipe's ``task:`` describes.

    Args:
        section: the section, or a mapping with its keys.
        seed: decides problems, split and order, unless ``section`` has a ``seed`` of its own.
        heldout: distinct prompts to keep out of training for evaluation. A data task keeps out what its own
            ``heldout`` says; without one it keeps out this many, but at most a tenth of its distinct prompts.
        needed: columns that every row must have, such as ``completion`` for supervised training.
        base: folder from which relative data paths are looked up.

    Raises:
        ConfigError: names no source, such as ``gym``, ``data`` or ``env``, an unknown key, or a value out of range.
        DataError: data that cannot be used.

    Examples:
        >>> load_task({"gim": "chain_sum"}, seed=0, heldout=0)
        Traceback (most recent call last):
        ...
        klent.errors.ConfigError: task: name one source: {gym: GENERATOR}, {data: FILE or ...
    """
    if isinstance(section, Mapping):
        section = read_task(section)
    return _open(
        section, _Wanted(seed if section.seed is None else section.seed, heldout, tuple(needed), base)
    )


@singledispatch
def _open(section: object, wanted: _Wanted) -> Task:
    """Each kind of section registers how its task is made."""
    raise TypeError(f"no task is known for {type(section).__name__}")


@_open.register
def _(section: GymSettings, wanted: _Wanted) -> Task:
    if wanted.needed:
        columns = ", ".join(wanted.needed)
        raise ConfigError(f"task.gym: generated problems have no {columns}; use task.data")
    return GymTask(section, seed=wanted.seed, heldout=wanted.heldout)


@_open.register
def _(section: FileSettings, wanted: _Wanted) -> Task:
    return DataTask(section, seed=wanted.seed, heldout=wanted.heldout, needed=wanted.needed, base=wanted.base)


@_open.register
def _(section: EnvironmentSettings, wanted: _Wanted) -> Task:
    if wanted.needed:
        raise ConfigError(f"task.env: an environment has no {', '.join(wanted.needed)}; use task.data")
    return EnvironmentTask(section, seed=wanted.seed, heldout=wanted.heldout, base=wanted.base)


@_open.register
def _(section: TrajectorySettings, wanted: _Wanted) -> Task:
    return TrajectoryTask(
        section, seed=wanted.seed, heldout=wanted.heldout, needed=wanted.needed, base=wanted.base
    )


@_open.register
def _(section: NoiseSettings, wanted: _Wanted) -> Task:
    return NoiseTask(section)


@_open.register
def _(section: SegmentSettings, wanted: _Wanted) -> Task:
    return SegmentTask(section, seed=wanted.seed, base=wanted.base)

"""Segments of episodes, each with what it was worth: return, success, and regret found by going back."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from klent.environments.robot.behaviour import Behaviour, scripted_return
from klent.environments.robot.simulator import Simulator, Vector
from klent.errors import ConfigError

Array = NDArray[np.float32]


class Branches(NamedTuple):
    """What the behaviour policy might have done after some of a segment's actions, played again with fresh noise.

    Attributes:
        time: t of each action branched from, one drawn from each of m equal parts of the segment, ``[m]``.
        observation: of step l of continuation k from there, for l > t, and 0 else, ``[m, k, T, D]``.
        mean: of the behaviour policy's action there, ``[m, k, T, A]``.
    """

    time: NDArray[np.int64]
    observation: Array
    mean: Array


class Segment(NamedTuple):
    """T steps of an episode.

    Attributes:
        start: step of the episode that it begins at, from 0.
        observation: before each action, ``[T, D]``.
        action: as drawn, ``[T, A]``.
        mean: of the behaviour policy's action, whose standard deviation is ``std``, ``[T, A]``.
        reward: of each action, ``[T]``.
        std: of every number of an action.
        earned: sum of its rewards.
        success: whether the task was solved in any of the states that it reached.
        regret: what the scripted policy would have earned from its start to the episode's horizon, less what
            the segment earned and the scripted policy earns from its end. Undiscounted. Below 0 where the
            segment did better than the script.
        branches: None where none were asked for.
    """

    start: int
    observation: Array
    action: Array
    mean: Array
    reward: Array
    std: float
    earned: float
    success: bool
    regret: float
    branches: Branches | None


def record_segment(
    simulator: Simulator,
    behaviour: Behaviour,
    seed: int,
    *,
    length: int,
    branches: int = 0,
    continuations: int = 1,
) -> Segment:
    """Play an episode up to the end of one segment, which begins at any step alike, and look at what it was worth.

    Args:
        simulator: left in another state.
        behaviour: acts.
        seed: of the episode, the segment's place and all noise.
        length: T.
        branches: how many actions of the segment are branched from, 0 = none.
        continuations: how often each.

    Raises:
        ConfigError: a segment longer than the episode, or branches that do not part it equally.
    """
    if not 0 < length <= simulator.horizon:
        raise ConfigError(
            f"length: a segment of {length} steps is longer than an episode, {simulator.horizon} steps. Shorten it"
        )
    if branches < 0 or (branches and length % branches):
        raise ConfigError(f"branches: {branches} does not divide {length} steps evenly. Set a divisor, or 0")
    generator = np.random.default_rng(seed)
    fresh = generator.spawn(1)[0]  # branches change nothing of the segment
    start = int(generator.integers(simulator.horizon - length + 1))
    times = _strata(fresh, length, branches)
    seen = simulator.reset(int(generator.integers(2**31)))
    for _ in range(start):
        seen = simulator.step(behaviour.act(simulator, generator)[0]).observation
    begun, left = simulator.save(), simulator.horizon - start
    played = _play(simulator, behaviour, generator, seen, length, times)
    earned = float(sum(played.rewards))
    reached = scripted_return(simulator, left - length)
    simulator.load(begun)
    regret = scripted_return(simulator, left) - (earned + reached)
    futures = [
        [
            _continue(simulator, behaviour, played.saved[time], fresh, time, length)
            for _ in range(continuations)
        ]
        for time in times
    ]
    return Segment(
        start=start,
        observation=_grid(played.observations),
        action=_grid(played.actions),
        mean=_grid(played.means),
        reward=np.array(played.rewards, dtype=np.float32),
        std=behaviour.std,
        earned=earned,
        success=played.success,
        regret=regret,
        branches=_gathered(times, futures) if branches else None,
    )


@dataclass
class _Played:
    """What happened in a segment, and the states after the actions that are branched from."""

    observations: list[Vector] = field(default_factory=list)
    actions: list[Vector] = field(default_factory=list)
    means: list[Vector] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    saved: dict[int, object] = field(default_factory=dict)
    success: bool = False


def _play(
    simulator: Simulator,
    behaviour: Behaviour,
    generator: np.random.Generator,
    seen: Vector,
    length: int,
    times: list[int],
) -> _Played:
    played = _Played()
    for step in range(length):
        action, mean = behaviour.act(simulator, generator)
        outcome = simulator.step(action)
        played.observations.append(seen)
        played.actions.append(action)
        played.means.append(mean)
        played.rewards.append(outcome.reward)
        played.success, seen = played.success or outcome.success, outcome.observation
        if step in times:
            played.saved[step] = simulator.save()
    return played


def _grid(vectors: list[Vector]) -> Array:
    return np.stack(vectors).astype(np.float32)


def _strata(generator: np.random.Generator, length: int, parts: int) -> list[int]:
    """One step of each of so many equal parts of a segment."""
    width = length // max(parts, 1)
    return [part * width + int(generator.integers(width)) for part in range(parts)]


def _continue(
    simulator: Simulator,
    behaviour: Behaviour,
    state: object,
    generator: np.random.Generator,
    time: int,
    length: int,
) -> tuple[Vector, Vector]:
    """States after the action at ``time`` and the behaviour policy's means there, ``[T, D]`` and ``[T, A]``."""
    observations = np.zeros((length, simulator.observations))
    means = np.zeros((length, simulator.actions))
    seen = simulator.load(state)
    for step in range(time + 1, length):
        action, means[step] = behaviour.act(simulator, generator)
        observations[step] = seen
        if step + 1 < length:
            seen = simulator.step(action).observation
    return observations, means


def _gathered(times: list[int], futures: list[list[tuple[Vector, Vector]]]) -> Branches:
    def stacked(which: int) -> Array:
        return np.stack([np.stack([one[which] for one in some]) for some in futures]).astype(np.float32)

    return Branches(np.array(times, dtype=np.int64), stacked(0), stacked(1))


def arrays_of(segments: list[Segment]) -> dict[str, NDArray[np.generic]]:
    """The arrays of some segments by name, the segments along their first axis."""
    return {name: np.stack(values) for name, values in _columns(segments)}


def _columns(segments: list[Segment]) -> Iterator[tuple[str, list[NDArray[np.generic]]]]:
    for name in ("observation", "action", "mean", "reward"):
        yield name, [getattr(segment, name) for segment in segments]
    branches = [segment.branches for segment in segments if segment.branches is not None]
    if branches:
        for name in Branches._fields:
            yield f"branch_{name}", [getattr(one, name) for one in branches]

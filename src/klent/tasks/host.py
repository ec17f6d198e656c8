"""The process of an environment: one function, called for each turn of each episode that is played there.

An episode is a function of its row, its seed and its actions. So nothing is lost with a process: what it held is
played again, action by action, in the next one.
"""

import json
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypedDict, cast

from klent.errors import ConfigError
from klent.kit.own_code import load

Observation = str | list[dict[str, object]]


class _Answer(Protocol):
    observation: Observation
    reward: float
    done: bool


class _Environment(Protocol):
    def reset(self, row: Mapping[str, object], seed: int) -> Observation: ...
    def step(self, action: str) -> _Answer: ...


class Turn(TypedDict):
    """What is sent back of a turn: what the environment says, pays, and whether the episode is over.

    ``template`` is what a chat template is given beside the messages, such as tools; ``digest`` stands for all
    that was said and paid in the episode so far.
    """

    observation: Observation
    reward: float
    done: bool
    template: dict[str, object]
    digest: int


class _Live:
    """An episode under way, once it has begun."""

    said: Turn

    def __init__(self, environment: _Environment) -> None:
        self.environment = environment
        self.actions = 0

    def begin(self, row: Mapping[str, object], seed: int) -> None:
        """The opening."""
        opening = self.environment.reset(dict(row), seed)
        template = getattr(self.environment, "template", None)
        self.said = self._turn(opening, 0.0, False, dict(template) if template else {}, 0)

    def step(self, action: str) -> None:
        """One turn more."""
        answer = self.environment.step(action)
        if not all(hasattr(answer, name) for name in ("observation", "reward", "done")):
            raise TypeError(
                f"step() returned {type(answer).__name__}, not a klent.environments.Step(observation, reward, done)"
            )
        self.actions += 1
        reward, done = float(answer.reward), bool(answer.done)
        self.said = self._turn(answer.observation, reward, done, {}, self.said["digest"])

    @staticmethod
    def _turn(said: Observation, reward: float, done: bool, template: dict[str, object], before: int) -> Turn:
        content = json.dumps([said, reward, done], default=str).encode()
        return {
            "observation": said,
            "reward": reward,
            "done": done,
            "template": template,
            "digest": zlib.crc32(content, before),
        }

    def close(self) -> None:
        """Let go of what the environment holds, where it can; where that fails, the log is told, and no episode
        suffers."""
        try:
            if callable(end := getattr(self.environment, "close", None)):
                end()
        except BaseException:  # also one that calls sys.exit()
            traceback.print_exc()


_classes: dict[str, Callable[..., object]] = {}
_live: dict[tuple[int, int], _Live] = {}


def turn(
    environment: str,
    config: dict[str, object],
    episode: tuple[int, int],
    row: dict[str, object],
    seed: int,
    actions: Sequence[str],
    digest: int | None,
) -> Turn:
    """The environment's answer to the last of ``actions``, or its opening where there is none.

    Args:
        environment: ``/path/file.py:Class`` or ``package.module:Class``.
        config: arguments of the class.
        episode: (session, number); episodes of an earlier session are forgotten.
        row: what the episode is reset with.
        seed: likewise.
        actions: all of the episode so far.
        digest: of all that was said before the last of them, where it is known.
    """
    key = (episode[0], episode[1])
    for other in [other for other in _live if other[0] != key[0]]:
        _live.pop(other).close()
    live = _live.pop(key, None)
    if live is not None and live.actions != len(actions) - 1:
        live.close()
        live = None
    again = live is None
    live = live or _Live(_made(environment, config))
    over = True  # where something is raised
    try:
        if again:
            live.begin(row, seed)
            for action in actions[:-1]:
                live.step(action)
        if actions:
            if digest is not None and live.said["digest"] != digest:
                raise ValueError(
                    "behaved differently when the same start and actions were repeated; let it depend on row, seed "
                    "and actions alone"
                )
            live.step(actions[-1])
        over = live.said["done"]
    finally:
        if over:
            live.close()
        else:
            _live[key] = live
    return live.said


def _made(target: str, config: Mapping[str, object]) -> _Environment:
    """A fresh environment."""
    if target not in _classes:
        _classes[target] = load(target, as_script=True, kind="class")
    try:
        environment = _classes[target](**config)
    except TypeError as error:
        raise ConfigError(f"cannot be made with config {dict(config)}: {error}") from error
    for method in ("reset", "step"):
        if not callable(getattr(environment, method, None)):
            raise ConfigError(
                f"{target} has no method `{method}`: an environment has reset(row, seed) and step(action)"
            )
    return cast(_Environment, environment)

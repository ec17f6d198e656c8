"""Worlds of other libraries as environments of klent, each where its library is installed."""

import importlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

from klent.environments.environment import Step
from klent.errors import ConfigError

EXTRAS = ("gymnasium", "textarena", "textworld", "verifiers")
"""Of klent, one for each of these libraries."""


def library(name: str) -> Any:
    """A library that is not klent's own, or a module of it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        whole = name.partition(".")[0]
        extra = f"pip install 'klent[{whole}]'" if whole in EXTRAS else f"install {name}"
        raise ConfigError(f"needs {name}: {extra} ({error})") from error


class Gymnasium:
    """An environment of gymnasium whose observations can be read as text.

    An action is given as the text it is where the action space is text. Where it is discrete, it is the last
    whole number of the turn; a turn without one, or with one out of range, is told so and pays 0.

    Args:
        id: as of ``gymnasium.make``.
        imports: a module that registers it; None = none.
        options: further arguments of ``gymnasium.make``.
    """

    def __init__(self, id: str, imports: str | None = None, **options: object) -> None:
        gymnasium = library("gymnasium")
        if imports is not None:
            library(imports)
        self.world = gymnasium.make(id, **options)
        self.discrete = hasattr(self.world.action_space, "n")

    def reset(self, row: Mapping[str, object], seed: int) -> str:
        observation, _ = self.world.reset(seed=seed, options=dict(row) or None)
        return str(observation)

    def step(self, action: str) -> Step:
        move: str | int = action
        if self.discrete:
            first, count = int(getattr(self.world.action_space, "start", 0)), int(self.world.action_space.n)
            numbers = re.findall(r"-?[0-9]+", action)
            if not numbers or not first <= int(numbers[-1]) < first + count:
                return Step(f"Say a whole number from {first} to {first + count - 1}.")
            move = int(numbers[-1])
        observation, reward, ended, cut, _ = self.world.step(move)
        return Step(str(observation), float(reward), bool(ended or cut))

    def close(self) -> None:
        self.world.close()


class TextArena:
    """A game of textarena for one player; what it pays is known at its end.

    Of an observation that repeats the earlier ones, what is new is said. Games that draw in the course of play do so
    from Python's one generator, so that what happens in one may depend on the others of its process.

    Args:
        id: as of ``textarena.make``, such as ``Wordle-v0``.
    """

    def __init__(self, id: str) -> None:
        self.world = library("textarena").make(env_id=id)

    def reset(self, row: Mapping[str, object], seed: int) -> str:
        self.world.reset(num_players=1, seed=seed)
        self.shown = ""
        return self._read()

    def step(self, action: str) -> Step:
        done, _ = self.world.step(action=action)
        if not done:
            return Step(self._read())
        paid = self.world.close()
        rewards = paid[0] if isinstance(paid, tuple) else paid
        return Step("", float((rewards or {}).get(0, 0.0)), done=True)

    def _read(self) -> str:
        _, observation = self.world.get_observation()
        before, self.shown = self.shown, str(observation)
        return self.shown.removeprefix(before)


class TextWorld:
    """A game that textworld makes from the start's seed; a turn is paid what it adds to the score.

    Args:
        rooms, objects, length: of the world and of its quest.
    """

    def __init__(self, rooms: int = 2, objects: int = 4, length: int = 3) -> None:
        self.library = library("textworld")
        self.rooms, self.objects, self.length = rooms, objects, length
        self.folder = tempfile.TemporaryDirectory(prefix="klent-textworld-")

    def reset(self, row: Mapping[str, object], seed: int) -> str:
        options = self.library.GameOptions()
        options.seeds = seed
        options.nb_rooms, options.nb_objects = self.rooms, self.objects
        options.quest_length = self.length
        options.path = self.folder.name
        file, _ = self.library.make(options)
        self.world = self.library.start(file)
        self.score = 0.0
        return str(self.world.reset().feedback)

    def step(self, action: str) -> Step:
        line = next(iter(action.strip().splitlines()), "")
        state, score, done = self.world.step(line)
        reward, self.score = float(score) - self.score, float(score)
        return Step(str(state.feedback), reward, bool(done))

    def close(self) -> None:
        self.world.close()
        self.folder.cleanup()

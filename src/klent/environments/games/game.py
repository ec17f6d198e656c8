"""What the games share: an environment whose Markov model is known, because one function says what follows."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from klent.environments.environment import Step
from klent.errors import ConfigError, DataError, RunError
from klent.kit.seeds import derive_seed


class State(NamedTuple):
    """What a player who forgets nothing knows: a state of the Markov model.

    Attributes:
        starts: which of the game's starts agree with all that was said, as indices; each is equally likely.
        left: turns left.
        place: where the player is, in games with a place.
    """

    starts: tuple[int, ...]
    left: int
    place: tuple[int, ...] = ()


class Reply(NamedTuple):
    """What the game says to an action, and what it means; ``place`` is where the player is then."""

    text: str
    won: bool = False
    over: bool = False
    place: tuple[int, ...] = ()


class Outcome(NamedTuple):
    """One thing that may follow an action; ``state`` is None where the episode is over."""

    probability: float
    reward: float
    text: str
    state: State | None


class Game(ABC):
    """An :class:`~klent.environments.Environment` that is its own Markov model.

    An episode starts from one of :attr:`rows`, each equally likely. A turn costs ``cost``, a win earns 1, and
    the episode is over after ``turns`` turns. An action is one word; case, and spaces and punctuation around
    it, do not matter. One that cannot be read costs its turn.

    A game says what its starts are, how it opens, what may be done, and what follows (:meth:`reply`). From
    this come both the environment (:meth:`reset`, :meth:`step`) and the model (:meth:`states`,
    :meth:`actions`, :meth:`outcomes`).
    """

    rows: Sequence[Mapping[str, str]]
    """Every start, as the row that :meth:`reset` takes."""

    allowed: str
    """What is said to an action that cannot be read."""

    home: tuple[int, ...] = ()
    """The place that an episode starts from."""

    def __init__(self, *, turns: int, cost: float) -> None:
        self.turns = checked_size("turns", turns, at_least=1)
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost <= 1:
            raise ConfigError(f"cost is {cost!r}; the cost of a turn must be a number from 0 to 1")
        self.cost = float(cost)
        self._openings: dict[str, list[int]] = {}  # the starts that each may be of
        self._start: int | None = None
        self._state: State | None = None

    @abstractmethod
    def opening(self, start: int) -> str:
        """What the player reads first."""

    @abstractmethod
    def actions(self, state: State) -> Sequence[str]:
        """What may be done."""

    @abstractmethod
    def reply(self, state: State, action: str, start: int) -> Reply:
        """What the game says to one of the actions, where the episode began from ``start``."""

    @abstractmethod
    def late(self, state: State) -> bool:
        """Whether the player is in the second half of the game; for players that are good at one half."""

    # the environment

    def reset(self, row: Mapping[str, object], seed: int) -> str:
        """Begin an episode; what the row leaves open is drawn by the seed.

        Raises:
            DataError: no start is like the row.
        """
        asked = {key: row[key] for key in self.rows[0] if key in row}
        fits = [n for n, start in enumerate(self.rows) if all(start[k] == v for k, v in asked.items())]
        if not fits:
            known = "; ".join(f"{key}: {', '.join(sorted({r[key] for r in self.rows}))}" for key in asked)
            raise DataError(f"no episode starts from {asked}. Possible starts: {known}")
        self._start = fits[derive_seed(seed, "start") % len(fits)]
        text = self.opening(self._start)
        self._state = self.begin(text)
        return text

    @property
    def row(self) -> dict[str, str]:
        """The start of the episode under way, whole: ``reset`` with it begins the same one, whatever the seed."""
        if self._start is None:
            raise RunError("no episode was begun: call reset first")
        return dict(self.rows[self._start])

    def step(self, action: str) -> Step:
        """Answer the player's word.

        Raises:
            RunError: the episode is over, or none was begun.
        """
        if self._state is None or self._start is None:
            raise RunError("the episode is over, or none was begun: call reset first")
        replies = self._replies(self._state, read_word(action)).items()
        reply, starts = next((reply, starts) for reply, starts in replies if self._start in starts)
        outcome = self._outcome(self._state, reply, starts)
        self._state = outcome.state
        return Step(outcome.text, outcome.reward, done=outcome.state is None)

    # the model

    def begin(self, opening: str) -> State:
        """The state after the opening."""
        if not self._openings:
            for start in range(len(self.rows)):
                self._openings.setdefault(self.opening(start), []).append(start)
        if opening not in self._openings:
            raise DataError(f"this game does not open with {opening!r}; was it made with other settings?")
        return State(tuple(self._openings[opening]), self.turns, self.home)

    def outcomes(self, state: State, action: str) -> list[Outcome]:
        """All that may follow an action, with its probability."""
        replies = self._replies(state, action).items()
        return [self._outcome(state, reply, tuple(starts)) for reply, starts in replies]

    def follow(self, state: State, action: str, text: str) -> State | None:
        """The state after an action and what the game said to it."""
        for outcome in self.outcomes(state, read_word(action)):
            if outcome.text == text:
                return outcome.state
        raise DataError(f"the game cannot have said {text!r} to {action!r}; was it made with other settings?")

    def read(self, history: Sequence[str]) -> State:
        """The state that a history leads to: the opening, an action, what was said to it, an action, ..."""
        state: State | None = self.begin(history[0])
        for action, text in zip(history[1::2], history[2::2], strict=True):
            if state is None:
                raise DataError("the history goes on after the end of its episode")
            state = self.follow(state, action, text)
        if state is None:
            raise DataError("the history's episode is over: there is nothing left to do")
        return state

    def best_case(self, state: State, gamma: float) -> float:
        """A bound that the value of a state never exceeds: the true start is named at once, or next."""
        win = 1 - self.cost
        later = gamma * win - self.cost if state.left > 1 else -self.cost
        return (win + (len(state.starts) - 1) * later) / len(state.starts)

    def _replies(self, state: State, word: str) -> dict[Reply, list[int]]:
        """What the game may say to a word, and the starts from which it says so."""
        if word not in self.actions(state):
            return {Reply(f"Not understood. {self.allowed}", place=state.place): list(state.starts)}
        replies: dict[Reply, list[int]] = {}
        for start in state.starts:
            replies.setdefault(self.reply(state, word, start), []).append(start)
        return replies

    def _outcome(self, state: State, reply: Reply, starts: Sequence[int]) -> Outcome:
        last = state.left == 1 and not reply.over
        return Outcome(
            probability=len(starts) / len(state.starts),
            reward=float(reply.won) - self.cost,
            text=f"{reply.text} No turns left." if last else reply.text,
            state=None if last or reply.over else State(tuple(starts), state.left - 1, reply.place),
        )


def read_word(action: str) -> str:
    """The one word of an action, in small letters; nothing where there is none, or more than one.

    >>> read_word(" Hat?"), read_word("left, no: right"), read_word("")
    ('hat', '', '')
    """
    words = re.findall(r"\w+", action)
    return words[0].casefold() if len(words) == 1 else ""


def checked_size(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """A setting that is a whole number in a range.

    Raises:
        ConfigError: it is none.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < at_least
        or value > (at_most or value)
    ):
        upper = "" if at_most is None else f" and at most {at_most}"
        raise ConfigError(f"{name} is {value!r}: it must be a whole number, at least {at_least}{upper}")
    return value

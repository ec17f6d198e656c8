"""What an environment said, did and paid in each episode, kept for a log."""

from collections.abc import Sequence
from typing import NamedTuple

from klent.config import EnvironmentSettings
from klent.streams.prompt import Messages
from klent.tasks.pool import Answer, EnvironmentPool, Play


class Heard(NamedTuple):
    """One turn: what the policy said, and what the environment answered."""

    action: str
    answer: Answer


class RecordingPool(EnvironmentPool):
    """An :class:`klent.tasks.pool.EnvironmentPool` that remembers the turns of its newest session.

    Args:
        section: as of :class:`EnvironmentPool`.

    Attributes:
        turns: of each episode, by its number.
    """

    def __init__(self, section: EnvironmentSettings) -> None:
        super().__init__(section)
        self.turns: dict[int, list[Heard]] = {}

    def begin(self) -> None:
        """Begin a session: what was played before is forgotten."""
        super().begin()
        self.turns = {}

    def step(self, plays: Sequence[Play]) -> list[Answer]:
        """As of :class:`EnvironmentPool`."""
        answers = super().step(plays)
        for play, answer in zip(plays, answers, strict=True):
            self.turns.setdefault(play.number, []).append(Heard(play.actions[-1], answer))
        return answers

    def observed(self, number: int, opening: str | Messages) -> list[str | Messages]:
        """What an episode's policy read before each of its actions."""
        return [opening, *(heard.answer.observation for heard in self.turns[number][:-1])]

"""Environments in processes of their own: one that raises, hangs or dies ends its episode, never the run."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

from klent.config import EnvironmentSettings
from klent.environments import find_environment
from klent.errors import ConfigError, DataError
from klent.kit.own_code import absolute
from klent.kit.text import plural
from klent.streams.prompt import Messages, Prompt
from klent.tasks.calls import Problems
from klent.tasks.first_call import STRANGER, Tried
from klent.tasks.host import Turn
from klent.tasks.messages import checked_said
from klent.tasks.process import CallFailed, Worker

_LIMIT_HITS = 4  # in a row, of one process; the rest of the turn is then given up
_OPENING = -1  # the number of an episode that is opened and not played


class Start(NamedTuple):
    """What an episode begins from."""

    row: Mapping[str, object]
    seed: int


class Answer(NamedTuple):
    """What the environment answered to a turn; ``problem`` says why it did not."""

    observation: str | Messages = ""
    reward: float = math.nan
    done: bool = True
    template: Mapping[str, object] = {}
    problem: str = ""


@dataclass
class Play:
    """An episode under way: all that it takes to play it again.

    Attributes:
        id: of its prompt.
        start: what it began from.
        number: its place in the session.
        actions: what the policy said, turn by turn.
        digest: of what the environment said to all of them, where it has.
    """

    id: str
    start: Start
    number: int
    actions: list[str] = field(default_factory=list)
    digest: int | None = None


class EnvironmentPool:
    """The processes of an environment; episodes are spread over them by their numbers.

    A process holds the episodes of one session at a time. Where it is ended, by a turn past its limit or by a
    crash, the next one plays the other episodes again from their starts and actions.

    Args:
        section: the recipe's ``task``.
        base: folder from which the path of its file is looked up, and of those that its settings name.

    Attributes:
        name: what messages call it.
        section: as given.
    """

    def __init__(self, section: EnvironmentSettings, base: Path = Path()) -> None:
        self.name = f"environment {Path(section.env).name}"
        self._target = absolute(find_environment(section.env), base)
        self._config = _located(section.config, base)
        self.section = section
        self._texts: dict[str, str] = {}
        self._session = 0
        self.log_to(None)

    def log_to(self, log: Path | None) -> None:
        """Where the environment's output and what goes wrong is written from now on; None = standard error."""
        section = self.section
        self._log = log
        self._workers = [
            Worker("klent.tasks.host:turn", log, memory_gb=section.memory_gb) for _ in range(section.workers)
        ]
        self._held: list[set[int]] = [set() for _ in self._workers]

    def close(self) -> None:
        """End the processes; they start again when needed."""
        for worker in self._workers:
            worker.close()

    def begin(self) -> None:
        """Begin a session: what was played before is forgotten."""
        self._session += 1
        self._held = [set() for _ in self._workers]

    def open(self, id: str, start: Start) -> Answer:
        """What the environment says first."""
        return self._answer(0, Play(id, start, _OPENING))[0]

    def step(self, plays: Sequence[Play]) -> list[Answer]:
        """What it says to the last action of each of these episodes, in their order."""
        count = len(self._workers)
        shares = [[play for play in plays if play.number % count == number] for number in range(count)]
        with ThreadPoolExecutor(count, thread_name_prefix="environment") as threads:
            found = list(threads.map(self._share, range(count), shares))
        answers = {number: answer for share in found for number, answer in share.items()}
        return [answers[play.number] for play in plays]

    def check(self, prompt: Prompt, start: Start) -> Tried:
        """Open the first start twice, and say something senseless to it.

        Raises:
            ConfigError: it cannot be opened.
        """
        self.begin()
        first, again = self.open(prompt.id, start), self.open(prompt.id, start)
        for answer in (first, again):
            if answer.problem:
                raise ConfigError(f"{answer.problem}, opening the first start ({prompt.id})")
        if first.observation != again.observation:
            text = f"{self.name}: opens {prompt.id} in two ways: a resumed run would not equal the run it continues"
            return Tried(f"{text}. Let it depend on row and seed alone", doubt=True)
        answer, _ = self._answer(0, Play(prompt.id, start, _OPENING, [STRANGER]))
        if answer.problem:
            text = f'{answer.problem}, after "{STRANGER}"; an episode in which it does so is unscorable'
            return Tried(text, doubt=True)
        end = "ends" if answer.done else "goes on"
        return Tried(f'{self.name}: pays {answer.reward:.4g} for "{STRANGER}" to {prompt.id}, and {end}')

    def _share(self, number: int, plays: Sequence[Play]) -> dict[int, Answer]:
        """The answers of one process."""
        answers: dict[int, Answer] = {}
        hits = 0
        for index, play in enumerate(plays):
            answers[play.number], late = self._answer(number, play)
            hits = hits + 1 if late else 0
            if hits == _LIMIT_HITS:
                left = plays[index + 1 :]
                text = f"{self.name} ran into its limit {hits} times in a row; the turn's other episodes are given up"
                answers |= {other.number: Answer(problem=text) for other in left}
                break
        return answers

    def _answer(self, number: int, play: Play) -> tuple[Answer, bool]:
        """One process's answer to one episode, and whether it ran past its limit."""
        worker, held = self._workers[number], self._held[number]
        again = 0 if play.number in held else len(play.actions)  # steps that have to be repeated first
        arguments = {
            "environment": self._target,
            "config": self._config,
            "episode": (self._session, play.number),
            "row": play.start.row,
            "seed": play.start.seed,
            "actions": play.actions,
            "digest": play.digest,
        }
        held.discard(play.number)
        try:
            turn = cast(Turn, worker.call(arguments, self.section.timeout * (1 + again)))
            answer = self._read(turn, play)
        except CallFailed as error:
            if error.kind != "raised":
                held.clear()
            return Answer(problem=self._problem(play, error.place, str(error))), error.kind == "timeout"
        if not answer.done and play.number != _OPENING:
            held.add(play.number)
        return answer, False

    def _read(self, turn: Turn, play: Play) -> Answer:
        play.digest = turn["digest"]
        if not math.isfinite(turn["reward"]):
            return Answer(problem=self._problem(play, "reward", f"paid {turn['reward']}, which is no number"))
        try:
            said = "" if turn["done"] else checked_said(turn["observation"], opening=not play.actions)
        except DataError as error:
            return Answer(problem=self._problem(play, "said", str(error)))
        return Answer(said, turn["reward"], turn["done"], turn["template"])

    def _problem(self, play: Play, place: str, text: str) -> str:
        """What to report of a failure; it is written to the log with its place in the episode."""
        line = f"{self.name} {' '.join(text.split())} ({play.id}, {plural(len(play.actions), 'action')} in)\n"
        if self._log is not None:
            with open(self._log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)
        told = Problems(self.name, self._texts)
        told.note(place, text)
        return next(iter(told))


def _located(value: object, base: Path) -> object:
    """Settings whose files of Python, such as tools, are named by their whole paths: a process may be elsewhere."""
    if isinstance(value, Mapping):
        return {key: _located(item, base) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_located(item, base) for item in value]
    if not isinstance(value, str) or ".py:" not in value:
        return value
    path = absolute(value, base)
    return path if Path(path.rpartition(":")[0]).is_file() else value

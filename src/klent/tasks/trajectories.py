"""Logged play as a task: each line an episode of several turns, with what every turn earned."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from klent.config import TrajectorySettings
from klent.errors import DataError
from klent.kit.names import nearest
from klent.streams.prompt import Messages
from klent.tasks import lmrl
from klent.tasks.data import DataTask
from klent.tasks.lines import Row
from klent.tasks.messages import checked_prompt, checked_said
from klent.tasks.returns import to_go
from klent.tasks.sources import Rows

TURN_KEYS = ("observation", "action", "reward")


class TrajectoryTask(DataTask):
    """Episodes of a file, replayed in an order that is a function of the position alone.

    Args:
        section: the file, how much of it is kept, and what its returns are.
        seed, heldout, base: as of :class:`DataTask`.

    Raises:
        ConfigError, DataError: as of :class:`DataTask`; or a line that is no episode, with its place and key.

    Attributes:
        discount: of a reward, per turn.
        bounds: the smallest and the largest of what can still be earned from a turn on: ``task.returns``, or those
            of the episodes that are trained on.
    """

    def __init__(
        self,
        section: TrajectorySettings,
        *,
        seed: int = 0,
        heldout: int = 0,
        needed: Sequence[str] = (),
        base: Path = Path("."),
    ) -> None:
        super().__init__(
            section,
            seed=seed,
            heldout=heldout,
            needed=needed or section.completions,
            base=base,
            read=Episodes,
        )
        self.discount = section.discount
        earned = {index: self._earned(index) for index in self._train}
        if section.keep is not None:
            self._train = best(self._train, [earned[index][0] for index in self._train], section.keep)
        values = [value for index in self._train for value in earned[index]]
        self.bounds = section.returns or (min(values), max(values))

    def _earned(self, index: int) -> list[float]:
        rewards: Sequence[float] = self._prompts[index].columns["rewards"]
        return to_go(rewards, self.discount)


class Episodes:
    """Rows of a log as rows of data: ``prompt``, ``trajectory`` (messages from the first action on), ``rewards``.

    Read are ``turns`` as ``klent play --record`` writes them, ``messages`` with ``rewards``, one for each message of
    the assistant, and the layouts of :mod:`klent.tasks.lmrl`.

    Args:
        rows: of the file.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def place(self, index: int) -> str:
        """Where an episode came from: ``file:line``."""
        return self._rows.place(index)

    def __getitem__(self, index: int) -> Row:
        return as_episode(self._rows[index], self.place(index))

    def __iter__(self) -> Iterator[Row]:
        return (as_episode(row, self.place(index)) for index, row in enumerate(self._rows))


def as_episode(row: Mapping[str, object], where: str) -> Row:
    """One line of a log, checked.

    Raises:
        DataError: with the line and the key that is wrong.

    >>> row = {"turns": [{"observation": "left or right?", "action": "left", "reward": 1}]}
    >>> as_episode(row, "log.jsonl:1")["trajectory"], as_episode(row, "log.jsonl:1")["rewards"]
    ([{'role': 'assistant', 'content': 'left'}], [1.0])
    """
    layout = lmrl.layout_of(row)
    if layout is not None and not row.keys() & {"turns", "messages"}:
        row = lmrl.as_turns(row, layout, where)
    both = "turns" in row, "messages" in row
    if both == (False, False):
        columns = ", ".join(row) or "none"
        raise DataError(
            f"{where}: no 'turns' and no 'messages'{nearest('turns', row)}; columns are: {columns}"
        )
    if both == (True, True):
        raise DataError(f"{where}: has 'turns' and 'messages'; keep one of the two")
    prompt, said, rewards = _of_turns(row, where) if both[0] else _of_messages(row, where)
    others = {key: value for key, value in row.items() if key not in ("turns", "messages", "prompt")}
    return {**others, "prompt": prompt, "trajectory": said, "rewards": rewards}


def _of_turns(row: Mapping[str, object], where: str) -> tuple[str | Messages, Messages, list[float]]:
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: 'turns' must be a list of at least one turn: {{{', '.join(TURN_KEYS)}}}")
    prompt: str | Messages = ""
    said: Messages = []
    rewards = []
    for number, turn in enumerate(turns, 1):
        here = f"{where}: turn {number}"
        if not isinstance(turn, dict):
            raise DataError(
                f"{here} must be an object with {', '.join(TURN_KEYS)}, not {type(turn).__name__}"
            )
        for key in TURN_KEYS:
            if key not in turn:
                raise DataError(
                    f"{here}: no {key!r}{nearest(key, turn)}; it has: {', '.join(turn) or 'none'}"
                )
        if not isinstance(turn["action"], str):
            raise DataError(f"{here}: 'action' must be text, not {type(turn['action']).__name__}")
        heard = _heard(turn["observation"], here, opening=number == 1)
        if number == 1:
            prompt = heard
        else:
            said += [{"role": "user", "content": heard}] if isinstance(heard, str) else heard
        said.append({"role": "assistant", "content": turn["action"]})
        rewards.append(_reward(turn["reward"], f"{here}: 'reward'"))
    return prompt, said, rewards


def _of_messages(row: Mapping[str, object], where: str) -> tuple[str | Messages, Messages, list[float]]:
    chat = _messages(row["messages"], f"{where}: 'messages'")
    acted = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
    if not acted or acted[0] == 0:
        raise DataError(
            f"{where}: 'messages' must begin with a message that is not the assistant's, and have at least one of "
            "the assistant's"
        )
    if "rewards" not in row:
        raise DataError(
            f"{where}: no 'rewards'{nearest('rewards', row)}; give one for each answer of the assistant"
        )
    given = row["rewards"]
    if not isinstance(given, list) or len(given) != len(acted):
        count = len(given) if isinstance(given, list) else "no list"
        raise DataError(
            f"{where}: 'rewards' must have {len(acted)} numbers, one for each answer; it has {count}"
        )
    rewards = [
        _reward(value, f"{where}: 'rewards', number {number}") for number, value in enumerate(given, 1)
    ]
    # What was said after the last answer is read by nobody.
    return chat[: acted[0]], chat[acted[0] : acted[-1] + 1], rewards


def _heard(value: object, here: str, *, opening: bool) -> str | Messages:
    """An observation: what an environment may say, and none of it the policy's own."""
    if opening or not isinstance(value, str):
        value = checked_prompt(value, f"{here}: 'observation'")
    try:
        return checked_said(value, opening=opening)
    except DataError as error:
        raise DataError(f"{here}: the environment {error}; 'action' is what the policy says") from error


def _messages(value: object, where: str) -> Messages:
    messages = checked_prompt(value, where)
    if isinstance(messages, str):
        raise DataError(f"{where} must be a list of messages, not text")
    return messages


def _reward(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{where} must be a finite number, not {value!r}")
    return float(value)


def best(indices: Sequence[int], returns: Sequence[float], share: float) -> list[int]:
    """The share of episodes with the largest returns, in their own order; of equal ones the earlier.

    >>> best([4, 5, 6, 7], [0.0, 1.0, 0.5, 1.0], 0.5)
    [5, 7]
    """
    count = max(1, round(share * len(indices)))
    order = sorted(range(len(indices)), key=lambda place: -returns[place])
    return [indices[place] for place in sorted(order[:count])]

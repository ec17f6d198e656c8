"""Prompts of your own as a task: JSON Lines, parquet, or a Hugging Face dataset."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from klent.config import FileSettings
from klent.errors import ConfigError, DataError, TooLong
from klent.kit.names import nearest
from klent.streams.prompt import Messages, Prompt
from klent.tasks.epochs import Epochs
from klent.tasks.lines import Row
from klent.tasks.messages import checked_completion, checked_prompt, checked_tools
from klent.tasks.pool import EnvironmentPool
from klent.tasks.preferences import split_pair
from klent.tasks.sources import LINES, Rows, open_rows

KEY = 16  # bytes
Reader = Callable[[Rows], Rows]


def _as_they_are(rows: Rows) -> Rows:
    return rows


class DataTask:
    """Prompts of a file, read and checked once, in an order that is a function of the position alone.

    Epoch :math:`e` visits the :math:`n` training rows in the order of a permutation that seed and :math:`e`
    decide; position :math:`p` is row :math:`p \\bmod n` of epoch :math:`\\lfloor p / n \\rfloor`. Rows with
    the same prompt stay on one side of the split, and the held-out side has each prompt once. Of logged play, whose
    episodes may all begin alike, that is so of rows with the same episode.

    Args:
        section: the file or dataset, and how to split and read it. Rows of ``only`` that would be held out
            stay in training, and no other prompt is held out in their place: a run on all rows, with the same
            seed, then trains on none of the prompts that this one is measured on.
        seed: decides the split and the order.
        heldout: distinct prompts to hold out where ``section`` does not say; at most a tenth.
        needed: columns that every row must have, such as ``completion``.
        base: folder from which relative paths are looked up.
        read: makes data of what the source holds.

    Raises:
        ConfigError: a file or split that does not exist, or two ways to hold out at once.
        DataError: rows that cannot be used, with file and line.
    """

    def __init__(
        self,
        section: FileSettings,
        *,
        seed: int = 0,
        heldout: int = 0,
        needed: Sequence[str] = (),
        base: Path = Path("."),
        read: Reader = _as_they_are,
    ) -> None:
        self.environments: EnvironmentPool | None = None
        data, other = section.source, section.heldout_data or section.source
        self.name = Path(data).stem if data.endswith((*LINES, ".parquet")) else data
        key = f"task.{section.key}"
        self._prompts = prompts = Prompts(data, section.split, section, needed, base, read, key)
        chosen = _choose(prompts, section.only, data) if section.only else list(range(len(prompts)))
        if section.heldout_data is None and section.heldout_split is None:
            trained = {prompts.key(index) for index in chosen} if section.only else set()
            distinct = prompts.distinct()
            count = heldout_count(section.heldout, heldout, len(distinct))
            if count:
                random.Random(f"{seed}/heldout").shuffle(distinct)
            others = [index for index in distinct[:count] if prompts.key(index) not in trained]
            held_out = {prompts.key(index) for index in others}
            self._heldout = [prompts[index] for index in others]
        else:
            if section.heldout is not None:
                raise ConfigError("task: give `heldout` or `heldout_data`/`heldout_split`, not both")
            split = section.heldout_split or "train"
            key = "task.heldout_data" if section.heldout_data else key
            apart = Prompts(other, split, section, needed, base, read, key)
            distinct = apart.distinct()
            held_out = {apart.key(index) for index in distinct}
            self._heldout = [apart[index] for index in distinct]
        self._train = (
            [index for index in chosen if prompts.key(index) not in held_out] if held_out else chosen
        )
        if not self._train:
            raise DataError(
                f"{data}: all {len(prompts)} rows have a prompt that is held out (there are "
                f"{len(self._heldout)}); nothing is left to train on"
            )
        self._drop = section.too_long == "drop"
        self._epochs = Epochs(seed)

    def fit(self, train: Callable[[Prompt], None] | None, heldout: Callable[[Prompt], None]) -> int:
        """Try every prompt before a run starts; ``task.too_long`` says what happens to those that do not fit.

        Args:
            train: raises :class:`klent.errors.TooLong` for a training prompt that the run cannot take, any
                other error for one that is wrong; None = nothing is trained on.
            heldout: the same for a held-out prompt.

        Returns:
            How many prompts were left out.

        Raises:
            TooLong: a prompt does not fit and is not to be dropped, or none is left to train on.
        """
        before = len(self._train) + len(self._heldout)
        if train is not None:
            self._train = [index for index in self._train if self._fits(self._prompts[index], train)]
        self._heldout = [prompt for prompt in self._heldout if self._fits(prompt, heldout)]
        if not self._train:
            raise TooLong(f"task.too_long=drop: every training prompt of {self.name} is too long")
        return before - len(self._train) - len(self._heldout)

    def _fits(self, prompt: Prompt, check: Callable[[Prompt], None]) -> bool:
        try:
            check(prompt)
        except TooLong:
            if not self._drop:
                raise
            return False
        return True

    def __len__(self) -> int:
        """Training rows in one epoch."""
        return len(self._train)

    def train(self, position: int) -> Prompt:
        """The training prompt at a position; every row once per epoch."""
        return self._prompts[self._train[self._epochs.row(position, len(self._train))]]

    def heldout(self, count: int) -> list[Prompt]:
        """The first ``count`` held-out prompts, or all where there are fewer."""
        return self._heldout[:count]


class Prompts:
    """The prompts of a source: all are checked once, and each is made again when it is drawn.

    Of a row that was not drawn, its place in the file and 16 bytes that stand for its prompt are kept.

    Raises:
        ConfigError, DataError: as of :func:`klent.tasks.sources.open_rows`; or a row that is no prompt, with its
            place.
    """

    def __init__(
        self,
        data: str,
        split: str,
        section: FileSettings,
        needed: Sequence[str],
        base: Path,
        read: Reader,
        key: str,
    ) -> None:
        self._rows = read(open_rows(data, split, section.subset, base, key=key))
        self._section, self._needed = section, needed
        self._column, self._plain = section.prompt_column, not (needed or section.system or section.paired)
        keys = bytearray()
        for index, row in enumerate(self._rows):
            text = row.get(self._column)
            if type(text) is str and self._is_plain(row, text):
                keys += _key(text)
            else:
                keys += _key(self._told_apart_by(self._prompt(row, self._rows.place(index))))
        if not keys:
            raise DataError(f"{data}: no rows; every line should be an object with a {self._column!r}")
        self._keys = bytes(keys)

    def __len__(self) -> int:
        return len(self._keys) // KEY

    def __getitem__(self, index: int) -> Prompt:
        return self._prompt(self._rows[index], self.place(index))

    def _told_apart_by(self, prompt: Prompt) -> object:
        """The prompt; of logged play the whole episode, as many begin with the same opening."""
        logged = "trajectory" in self._section.completions
        return [prompt.prompt, prompt.columns["trajectory"]] if logged else prompt.prompt

    def place(self, index: int) -> str:
        """Where a prompt came from."""
        return self._rows.place(index)

    def key(self, index: int) -> bytes:
        """The same for the same prompt."""
        return self._keys[index * KEY : (index + 1) * KEY]

    def distinct(self) -> list[int]:
        """The first index of every prompt."""
        high, low = np.frombuffer(self._keys, dtype=np.uint64).reshape(-1, 2).T
        order = np.lexsort((low, high))  # stable: of equal ones the first comes first
        new = np.ones(len(order), dtype=bool)
        new[1:] = (high[order[1:]] != high[order[:-1]]) | (low[order[1:]] != low[order[:-1]])
        first: list[int] = np.sort(order[new]).tolist()
        return first

    def _is_plain(self, row: Row, text: str) -> bool:
        """Whether a row is a text and columns for rewards, in which nothing can be wrong."""
        return (
            self._plain
            and self._column != "messages"
            and not (text.isspace() or not text)
            and "prompts" not in row
            and "completions" not in row
            and "tools" not in row
        )

    def _prompt(self, source: Row, where: str) -> Prompt:
        section = self._section
        if section.paired:
            row, column = split_pair(source, section.prompt_column, where), section.prompt_column
        else:
            row, column = _as_prompt(source, section.prompt_column, where)
        if column == "messages" and "completion" in self._needed and row.get("completion") is None:
            raise DataError(
                f"{where}: 'messages' has no message of the assistant behind the last one of the user: there is "
                "nothing to train. Add the answer, or remove the row"
            )
        for name in (column, *self._needed):
            if row.get(name) is None:
                fix = "; name the right one in task.prompt_column" if name == column else ""
                columns = ", ".join(row) or "none"
                raise DataError(f"{where}: no {name!r}{nearest(name, row)}; columns are: {columns}{fix}")
        prompt = checked_prompt(row[column], f"{where}: {column!r}")
        for name in self._needed:
            row[name] = checked_completion(row[name], f"{where}: {name!r}", silent=name == "trajectory")
        template = dict(section.rendering)
        if row.get("tools"):
            template["tools"] = checked_tools(row["tools"], f"{where}: 'tools'")
        others = {name: value for name, value in row.items() if name not in (column, "prompt")}
        for name in sorted(others.keys() & {"prompts", "completions"}):
            raise DataError(
                f"{where}: a column cannot be called {name!r}: rewards get what was asked and sampled under "
                "this name. Rename or remove it"
            )
        return Prompt(where, with_system(prompt, section.system), others, template=template)


def _choose(prompts: Prompts, only: Sequence[int], data: str) -> list[int]:
    """The rows whose places end in these numbers."""
    by_number = {int(prompts.place(index).rpartition(":")[2]): index for index in range(len(prompts))}
    for number in only:
        if number not in by_number:
            rows = f"{min(by_number)} to {max(by_number)}"
            raise DataError(f"task.only: {data} has no row {number}; rows are {rows}")
    return [by_number[number] for number in dict.fromkeys(only)]


def heldout_count(setting: float | int | None, default: int, distinct: int) -> int:
    """How many of the distinct prompts are held out; at most a tenth where nothing is set."""
    if setting is None:
        return min(default, max(1, distinct // 10)) if distinct > 1 else 0
    count = max(1, round(setting * distinct)) if setting < 1 else int(setting)
    if count >= distinct:
        raise DataError(f"task.heldout: {count} of {distinct} distinct prompts leave nothing to train on")
    return count


def _as_prompt(row: Row, column: str, where: str) -> tuple[Row, str]:
    """The row with its prompt, and the prompt's column; a whole conversation is cut before its last answer."""
    whole = "messages"
    if column not in ("prompt", whole) or "prompt" in row or row.get(whole) is None:
        return dict(row), column
    chat = checked_prompt(row[whole], f"{where}: {whole!r}")
    if isinstance(chat, str):
        return dict(row), column
    cut = 1 + max((i for i, message in enumerate(chat) if message["role"] == "user"), default=-1)
    if cut == 0:
        raise DataError(f"{where}: {whole!r} has no message of a user")
    rest = {name: value for name, value in row.items() if name != whole}
    answer = {"completion": chat[cut:]} if chat[cut:] else {}
    return {**rest, whole: chat[:cut], **answer}, whole


def with_system(prompt: str | Messages, system: str | None) -> str | Messages:
    """A prompt behind a system message, unless it has one."""
    if not system:
        return prompt
    messages: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _key(prompt: object) -> bytes:
    """16 bytes that stand for a prompt: two prompts share theirs once in 10^26 files of a million."""
    text = f'"{prompt}' if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()

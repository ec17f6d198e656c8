"""Prompts of your own as a task: JSON Lines, CSV, parquet, or a Hugging Face dataset."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from klent.config import FileSettings
from klent.errors import ConfigError, DataError, TooLong
from klent.kit.text import plural
from klent.streams.prompt import Prompt
from klent.tasks.epochs import Epochs
from klent.tasks.pool import EnvironmentPool
from klent.tasks.rows import PromptReader, Reader, as_they_are, open_prompt_rows
from klent.tasks.sources import FILES

KEY = 16  # bytes


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
        read: Reader = as_they_are,
    ) -> None:
        self.environments: EnvironmentPool | None = None
        data, other = section.source, section.heldout_data or section.source
        self.name = Path(data).stem if data.endswith(FILES) else data
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
            self._heldout = [prompts[index] for index in _measured(prompts, others, section)]
        else:
            if section.heldout is not None:
                raise ConfigError("task: give `heldout` or `heldout_data`/`heldout_split`, not both")
            split = section.heldout_split or "train"
            key = "task.heldout_data" if section.heldout_data else key
            apart = Prompts(other, split, section, needed, base, read, key)
            distinct = apart.distinct()
            held_out = {apart.key(index) for index in distinct}
            self._heldout = [apart[index] for index in _measured(apart, distinct, section)]
        self._train = (
            [index for index in chosen if prompts.key(index) not in held_out] if held_out else chosen
        )
        if not self._train:
            raise DataError(
                f"{data}: each of its {plural(len(prompts), 'row')} has a prompt that is held out (there are "
                f"{len(self._heldout)}), so nothing is left to train on; hold out other prompts"
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
            raise TooLong(
                f"task.too_long=drop: every training prompt of {self.name} is too long; lower rollout.max_tokens, or "
                "use shorter prompts"
            )
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
        self._rows = open_prompt_rows(data, split, section, base, read=read, key=key)
        self._reader = PromptReader(section, needed)
        keys = bytearray()
        for index, row in enumerate(self._rows):
            keys += prompt_key(self._reader.told_apart_by(row, self._rows.place(index)))
        if not keys:
            raise DataError(
                f"{data}: no rows; every line should be an object with a {section.prompt_column!r}"
            )
        self._keys = bytes(keys)

    def __len__(self) -> int:
        return len(self._keys) // KEY

    def __getitem__(self, index: int) -> Prompt:
        return self._reader.prompt(self._rows[index], self.place(index))

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


def _choose(prompts: Prompts, only: Sequence[int], data: str) -> list[int]:
    """The rows whose places end in these numbers."""
    by_number = {int(prompts.place(index).rpartition(":")[2]): index for index in range(len(prompts))}
    for number in only:
        if number not in by_number:
            rows = f"{min(by_number)} to {max(by_number)}"
            raise DataError(f"task.only: {data} has no row {number}; rows are {rows}")
    return [by_number[number] for number in dict.fromkeys(only)]


def _measured(prompts: Prompts, held_out: list[int], section: FileSettings) -> list[int]:
    """The rows to measure of held-out prompts, one of each first; of pairs the others too."""
    if not section.paired:
        return held_out
    keys, first = {prompts.key(index) for index in held_out}, set(held_out)
    more = [index for index in range(len(prompts)) if index not in first and prompts.key(index) in keys]
    return [*held_out, *more]


def one_of_each(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first of every distinct prompt: whoever answers a prompt twice has not two problems."""
    first: dict[bytes, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt_key(prompt.prompt), prompt)
    return list(first.values())


def heldout_count(setting: float | int | None, default: int, distinct: int) -> int:
    """How many of the distinct prompts are held out; at most a tenth where nothing is set."""
    if setting is None:
        return min(default, max(1, distinct // 10)) if distinct > 1 else 0
    count = max(1, round(setting * distinct)) if setting < 1 else int(setting)
    if count >= distinct:
        raise DataError(
            f"task.heldout: {count} of {distinct} distinct prompts leave nothing to train on; lower it"
        )
    return count


def prompt_key(prompt: object) -> bytes:
    """16 bytes that stand for a prompt: two prompts share theirs once in 10^26 files of a million."""
    text = f'"{prompt}' if isinstance(prompt, str) else json.dumps(prompt)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY).digest()

"""Prompts of your own as a task: JSON Lines, parquet, or a Hugging Face dataset."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from klent.config import DataSettings
from klent.errors import ConfigError, DataError, TooLong
from klent.kit.names import nearest
from klent.streams.prompt import Messages, Prompt
from klent.tasks.messages import checked_completion, checked_prompt, checked_tools
from klent.tasks.sources import LINES, Row, read_rows


class DataTask:
    """Prompts of a file, read and checked once, in an order that is a function of the position alone.

    Epoch :math:`e` visits the :math:`n` training rows in the order of a permutation that seed and :math:`e`
    decide; position :math:`p` is row :math:`p \\bmod n` of epoch :math:`\\lfloor p / n \\rfloor`. Rows with
    the same prompt stay on one side of the split, and the held-out side has each prompt once.

    Args:
        section: the file or dataset, and how to split and read it. Rows of ``only`` that would be held out
            stay in training, and no other prompt is held out in their place: a run on all rows, with the same
            seed, then trains on none of the prompts that this one is measured on.
        seed: decides the split and the order.
        heldout: distinct prompts to hold out where ``section`` does not say; at most a tenth.
        needed: columns that every row must have, such as ``completion``.
        base: folder from which relative paths are looked up.

    Raises:
        ConfigError: a file or split that does not exist, or two ways to hold out at once.
        DataError: rows that cannot be used, with file and line.
    """

    def __init__(
        self,
        section: DataSettings,
        *,
        seed: int = 0,
        heldout: int = 0,
        needed: Sequence[str] = (),
        base: Path = Path("."),
    ) -> None:
        data, other = section.data, section.heldout_data or section.data
        self.name = Path(data).stem if data.endswith((*LINES, ".parquet")) else data
        self._seed = seed
        prompts = _read_prompts(data, section.split, section, needed, base)
        chosen = _choose(prompts, section.only, data) if section.only else prompts
        if section.heldout_data is None and section.heldout_split is None:
            trained = {_key(prompt) for prompt in chosen} if section.only else set()
            distinct = _distinct(prompts)
            count = _heldout_count(section.heldout, heldout, len(distinct))
            random.Random(f"{seed}/heldout").shuffle(distinct)
            self._heldout = [prompt for prompt in distinct[:count] if _key(prompt) not in trained]
        else:
            if section.heldout is not None:
                raise ConfigError("task: give `heldout` or `heldout_data`/`heldout_split`, not both")
            split = section.heldout_split or "train"
            self._heldout = _distinct(_read_prompts(other, split, section, needed, base))
        held_out = {_key(prompt) for prompt in self._heldout}
        self._train = [prompt for prompt in chosen if _key(prompt) not in held_out]
        if not self._train:
            raise DataError(
                f"{data}: all {len(prompts)} rows have a prompt that is held out (there are "
                f"{len(self._heldout)}); nothing is left to train on"
            )
        self._drop = section.too_long == "drop"
        self._start_over()

    def _start_over(self) -> None:
        self._epoch = -1
        self._order: list[int] = []

    def fit(self, train: Callable[[Prompt], None], heldout: Callable[[Prompt], None]) -> int:
        """Try every prompt before a run starts; ``task.too_long`` says what happens to those that do not fit.

        Args:
            train: raises :class:`klent.errors.TooLong` for a training prompt that the run cannot take, any
                other error for one that is wrong.
            heldout: the same for a held-out prompt.

        Returns:
            How many prompts were left out.

        Raises:
            TooLong: a prompt does not fit and is not to be dropped, or none is left to train on.
        """
        before = len(self._train) + len(self._heldout)
        self._train = [prompt for prompt in self._train if self._fits(prompt, train)]
        self._heldout = [prompt for prompt in self._heldout if self._fits(prompt, heldout)]
        if not self._train:
            raise TooLong(f"task.too_long=drop: every training prompt of {self.name} is too long")
        self._start_over()
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
        epoch, index = divmod(position, len(self._train))
        if epoch != self._epoch:  # kept for speed; the order is a function of seed and epoch
            self._order = list(range(len(self._train)))
            random.Random(f"{self._seed}/epoch/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._train[self._order[index]]

    def heldout(self, count: int) -> list[Prompt]:
        """The first ``count`` held-out prompts, or all where there are fewer."""
        return self._heldout[:count]


def _choose(prompts: list[Prompt], only: Sequence[int], data: str) -> list[Prompt]:
    """The rows whose ids end in these numbers."""
    by_number = {int(prompt.id.rpartition(":")[2]): prompt for prompt in prompts}
    for number in only:
        if number not in by_number:
            rows = f"{min(by_number)} to {max(by_number)}"
            raise DataError(f"task.only: {data} has no row {number}; rows are {rows}")
    return [by_number[number] for number in dict.fromkeys(only)]


def _heldout_count(setting: float | int | None, default: int, distinct: int) -> int:
    """How many of the distinct prompts are held out."""
    if setting is None:
        return min(default, max(1, distinct // 10)) if distinct > 1 else 0
    count = max(1, round(setting * distinct)) if setting < 1 else int(setting)
    if count >= distinct:
        raise DataError(f"task.heldout: {count} of {distinct} distinct prompts leave nothing to train on")
    return count


def _read_prompts(
    data: str, split: str, section: DataSettings, needed: Sequence[str], base: Path
) -> list[Prompt]:
    """Every row of a source, checked."""
    prompts = []
    for where, source in read_rows(data, split, section.subset, base):
        row, column = _as_prompt(source, section.prompt_column, where)
        for name in (column, *needed):
            if row.get(name) is None:
                fix = "; name the right one in task.prompt_column" if name == column else ""
                columns = ", ".join(row) or "none"
                raise DataError(f"{where}: no {name!r}{nearest(name, row)}; columns are: {columns}{fix}")
        prompt = checked_prompt(row[column], f"{where}: {column!r}")
        if "completion" in needed:
            row["completion"] = checked_completion(row["completion"], f"{where}: 'completion'")
        template = dict(section.rendering)
        if row.get("tools"):
            template["tools"] = checked_tools(row["tools"], f"{where}: 'tools'")
        others = {name: value for name, value in row.items() if name not in (column, "prompt")}
        for name in sorted(others.keys() & {"prompts", "completions"}):
            raise DataError(
                f"{where}: a column cannot be called {name!r}: rewards get what was asked and sampled under "
                "this name. Rename or remove it"
            )
        prompts.append(Prompt(where, _with_system(prompt, section.system), others, template=template))
    if not prompts:
        raise DataError(f"{data}: no rows; every line should be an object with a {section.prompt_column!r}")
    return prompts


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


def _with_system(prompt: str | Messages, system: str | None) -> str | Messages:
    if not system:
        return prompt
    messages: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt.prompt)


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(_key(prompt), prompt)
    return list(first.values())

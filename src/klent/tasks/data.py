"""Your own prompts as a task: JSON Lines, parquet, or a Hugging Face dataset."""

import datetime
import decimal
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from klent.config.rewards import nearest
from klent.errors import ConfigError, DataError
from klent.streams.prompt import Prompt

_LINES = (".jsonl", ".ndjson", ".json")


class DataTask:
    """Prompts of a file, read and checked once, in an order that is a function of the position alone.

    Epoch :math:`e` visits the :math:`n` training rows in the order of a permutation that seed and :math:`e`
    decide; position :math:`p` is row :math:`p \\bmod n` of epoch :math:`\\lfloor p / n \\rfloor`. Rows with
    the same prompt stay on one side of the split, and the held-out side has each prompt once.

    Args:
        data: a ``.jsonl`` or ``.parquet`` file, a dataset folder, or a dataset's id on the hub.
        seed: decides the split and the order.
        split: the part of a dataset to read; files have none.
        subset: the dataset's configuration, where it has several.
        heldout: what to keep out of training: a share of the distinct prompts (below 1), or how many (a whole
            number); None = a tenth, at most ``heldout_count``.
        heldout_count: see ``heldout``.
        heldout_data: another file or dataset to hold out instead; its prompts are dropped from training.
        heldout_split: the part of ``heldout_data`` (or of ``data``, alone) to hold out.
        prompt_column: the column that holds prompts.
        system: a system message before every prompt that has none of its own; text becomes a user message
            then.
        only: rows to train on, by the number in their id (the line of a file), in turn; None = all that are
            not held out. Those among them that would be held out are not, and nothing is in their place.
        needed: columns that every row must have, such as ``completion``.
        base: folder from which relative paths are looked up.

    Raises:
        ConfigError: a file, split or option that does not exist.
        DataError: rows that cannot be used, with file and line.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        seed: int = 0,
        split: str = "train",
        subset: str | None = None,
        heldout: float | int | None = None,
        heldout_count: int = 0,
        heldout_data: str | Path | None = None,
        heldout_split: str | None = None,
        prompt_column: str = "prompt",
        system: str | None = None,
        only: Sequence[int] | None = None,
        needed: Sequence[str] = (),
        base: Path = Path("."),
    ) -> None:
        self.name = Path(data).stem if str(data).endswith((*_LINES, ".parquet")) else str(data)
        self._seed = seed
        prompts = _prompts(str(data), split, subset, prompt_column, system, needed, base)
        chosen = _chosen(prompts, only, str(data)) if only else prompts
        if heldout_data is None and heldout_split is None:
            kept = {_key(prompt) for prompt in chosen} if only else set()
            distinct = _distinct(prompts)
            count = _heldout_count(heldout, heldout_count, len(distinct))
            random.Random(f"{seed}/heldout").shuffle(distinct)
            # none in place of those of `only`: so a run on all rows trains on none of what is measured here
            self._heldout = [prompt for prompt in distinct[:count] if _key(prompt) not in kept]
        else:
            if heldout is not None:
                raise ConfigError("task: give `heldout` or `heldout_data`/`heldout_split`, not both")
            other = str(data if heldout_data is None else heldout_data)
            rows = _prompts(other, heldout_split or "train", subset, prompt_column, system, needed, base)
            self._heldout = _distinct(rows)
        kept_out = {_key(prompt) for prompt in self._heldout}
        self._train = [prompt for prompt in chosen if _key(prompt) not in kept_out]
        if not self._train:
            raise DataError(
                f"{data}: all {len(prompts)} rows have a prompt that is held out (there are "
                f"{len(self._heldout)}); nothing is left to train on"
            )
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        """Training rows in one epoch."""
        return len(self._train)

    def train(self, position: int) -> Prompt:
        """The training prompt at a position; every row once an epoch."""
        epoch, index = divmod(position, len(self._train))
        if epoch != self._epoch:  # kept for speed; the order is a function of seed and epoch
            self._order = list(range(len(self._train)))
            random.Random(f"{self._seed}/epoch/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._train[self._order[index]]

    def heldout(self, count: int) -> list[Prompt]:
        """The first ``count`` held-out prompts, or all where there are fewer."""
        return self._heldout[:count]


def _chosen(prompts: list[Prompt], only: Sequence[int], data: str) -> list[Prompt]:
    """The rows whose ids end in these numbers."""
    by_number = {int(prompt.id.rpartition(":")[2]): prompt for prompt in prompts}
    for number in only:
        if number not in by_number:
            rows = f"{min(by_number)} to {max(by_number)}"
            raise DataError(f"task.only: {data} has no row {number}; rows are {rows}")
    return [by_number[number] for number in dict.fromkeys(only)]


def _heldout_count(heldout: float | int | None, at_most: int, distinct: int) -> int:
    if heldout is None:
        return min(at_most, max(1, distinct // 10)) if distinct > 1 else 0
    if isinstance(heldout, bool) or not isinstance(heldout, int | float) or not heldout >= 0:
        raise ConfigError(f"task.heldout: expected a share such as 0.1 or a whole number, not {heldout!r}")
    if isinstance(heldout, float) and heldout >= 1 and not heldout.is_integer():
        raise ConfigError(f"task.heldout: {heldout} is neither a share below 1 nor a whole number")
    count = max(1, round(heldout * distinct)) if 0 < heldout < 1 else int(heldout)
    if count and count >= distinct:
        raise DataError(f"task.heldout: {count} of {distinct} distinct prompts leave nothing to train on")
    return count


def _prompts(
    data: str,
    split: str,
    subset: str | None,
    prompt_column: str,
    system: str | None,
    needed: Sequence[str],
    base: Path,
) -> list[Prompt]:
    """Every row of a source, checked."""
    prompts = []
    for where, row in _rows(data, split, subset, base):
        for column in (prompt_column, *needed):
            if row.get(column) is None:
                option = "; name the right one in task.prompt_column" if column == prompt_column else ""
                there = ", ".join(row) or "none"
                raise DataError(f"{where}: no {column!r}{nearest(column, row)}; columns are: {there}{option}")
        prompt = _checked(row[prompt_column], f"{where}: {prompt_column!r}")
        if row.get("completion") is not None and "completion" in needed:
            _checked(row["completion"], f"{where}: 'completion'")
        columns = {name: value for name, value in row.items() if name != prompt_column}
        prompts.append(Prompt(where, _with_system(prompt, system), columns))
    if not prompts:
        raise DataError(f"{data}: no rows; every line should be an object with a {prompt_column!r}")
    return prompts


def _checked(value: Any, what: str) -> Any:
    """Text, or messages of text; anything else is refused with its place."""
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{what} is empty")
        return value
    if not isinstance(value, list):
        raise DataError(f"{what} must be text or a list of messages, not {type(value).__name__}")
    if not value:
        raise DataError(f"{what} is an empty list of messages")
    for number, message in enumerate(value, 1):
        fields = [message.get("role"), message.get("content")] if isinstance(message, dict) else [None]
        if not all(isinstance(field, str) for field in fields):
            raise DataError(
                f'{what}, message {number}: expected {{"role": ..., "content": ...}} with text in both, '
                f"not {json.dumps(message, default=str)[:80]}"
            )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _with_system(prompt: Any, system: str | None) -> Any:
    if not system:
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    own = messages[0]["role"] == "system"
    return messages if own else [{"role": "system", "content": system}, *messages]


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt.prompt)


def _distinct(prompts: list[Prompt]) -> list[Prompt]:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(_key(prompt), prompt)
    return list(first.values())


def _rows(data: str, split: str, subset: str | None, base: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with the place each came from, ``file:line``."""
    path = base / Path(data).expanduser()
    if data.endswith(_LINES):
        return _json_lines(path, data)
    if data.endswith(".parquet"):
        return _parquet(path, data)
    if path.is_file():
        raise ConfigError(f"task.data: {data} is neither .jsonl nor .parquet; those and datasets can be read")
    return _dataset(data, path, split, subset)


def _json_lines(path: Path, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ConfigError(f"task.data: there is no file {shown} (looked for {path.absolute()})")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror}") from error
    content = content.removeprefix(b"\xef\xbb\xbf")
    if content.lstrip().startswith(b"["):
        raise DataError(
            f"{shown}: one JSON array; write one object a line (jq -c '.[]' {shown} > lines.jsonl)"
        )
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{shown}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line)") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with a prompt, not {type(row).__name__}")
        yield where, row


def _parquet(path: Path, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ConfigError(f"task.data: there is no file {shown} (looked for {path.absolute()})")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("task.data: parquet needs: pip install 'klent[data]'") from error
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{shown}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    return _numbered(shown, table.to_pylist())


def _dataset(data: str, path: Path, split: str, subset: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"task.data: {data} is no .jsonl or .parquet file; a dataset needs: pip install 'klent[data]'"
        ) from error
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    try:
        if saved:
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.is_dir() else data, name=subset, split=split)
    except Exception as error:  # the library raises anything from KeyError to its HTTP client's errors
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"task.data: cannot load {data!r} (split {split!r}): {reason}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            there = ", ".join(loaded)
            raise ConfigError(f"task.split: {data} has no {split!r}{nearest(split, loaded)}; it has {there}")
        loaded = loaded[split]
    return _numbered(f"{data}/{split}", loaded)


def _numbered(shown: str, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        columns = {name: _json_value(value) for name, value in row.items()}
        yield f"{shown}:{number}", {name: value for name, value in columns.items() if value is not _LEFT_OUT}


_LEFT_OUT = object()


def _json_value(value: Any) -> Any:
    """A cell as JSON can hold it: dates and decimals as text; images and other bytes are left out."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [_json_value(item) for item in value]
        return _LEFT_OUT if any(item is _LEFT_OUT for item in items) else items
    if isinstance(value, dict):
        entries = {str(key): _json_value(item) for key, item in value.items()}
        return _LEFT_OUT if any(item is _LEFT_OUT for item in entries.values()) else entries
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else _LEFT_OUT

"""Rows of JSON Lines, CSV, parquet and Hugging Face datasets, read when they are drawn, each with its place."""

import datetime
import decimal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from klent.errors import ConfigError, DataError
from klent.kit.names import nearest
from klent.tasks.comma_separated import TABLES, CommaSeparated
from klent.tasks.lines import IN_MEMORY, JsonLines, Row

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile

LINES = (".jsonl", ".ndjson", ".json")
FILES = (*LINES, *TABLES, ".parquet")
_LEFT_OUT = object()


class Rows(Protocol):
    """Rows of a source, each made when it is asked for; iterating reads and checks every one."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...
    def __iter__(self) -> Iterator[Row]: ...
    def place(self, index: int) -> str:
        """Where a row came from: ``file:line``."""
        ...


def open_rows(data: str, split: str, subset: str | None, base: Path, *, key: str = "task.data") -> Rows:
    """The rows of a file or dataset, which the recipe names under ``key``.

    Raises:
        ConfigError: a file, split or library that is missing.
        DataError: content that cannot be read, with file and line; for some of it as rows are read.
    """
    path = base / Path(data).expanduser()
    if data.endswith(LINES):
        return JsonLines(path, data, key)
    if data.endswith(TABLES):
        return CommaSeparated(path, data, key)
    if data.endswith(".parquet"):
        return _parquet(path, data, key)
    if path.is_file():
        raise ConfigError(
            f"{key}: {data} is none of .jsonl, .csv, .tsv and .parquet; convert it to one of these"
        )
    return _dataset(data, path, split, subset, key)


class _Cells:
    """Rows of a table as JSON can hold them."""

    def __init__(
        self,
        shown: str,
        count: int,
        at: Callable[[int], Mapping[str, object]],
        every: Callable[[], Iterable[Mapping[str, object]]],
    ) -> None:
        self._shown, self._count, self._at, self._every = shown, count, at, every

    def __len__(self) -> int:
        return self._count

    def place(self, index: int) -> str:
        return f"{self._shown}:{index + 1}"

    def __getitem__(self, index: int) -> Row:
        return _as_json(self._at(index))

    def __iter__(self) -> Iterator[Row]:
        return map(_as_json, self._every())


def _parquet(path: Path, shown: str, key: str) -> Rows:
    if not path.is_file():
        raise ConfigError(f"{key}: there is no file {shown} (looked for {path.absolute()})")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{key}: parquet needs: pip install 'klent[data]'") from error
    try:
        table = _small_or_mapped(parquet.ParquetFile(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{shown}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    return _Cells(
        shown,
        table.num_rows,
        lambda index: table.slice(index, 1).to_pylist()[0],
        lambda: (row for batch in table.to_batches(max_chunksize=1000) for row in batch.to_pylist()),
    )


def _small_or_mapped(file: "ParquetFile") -> "Table":
    """A parquet file as a table: in memory, or where it is large as an uncompressed copy on the disk.

    Rows are drawn in any order, for which parquet would unpack a whole group of them each time. The copy has no name
    any more, and goes with this process.
    """
    import pyarrow

    parts = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
    if sum(part.total_byte_size for part in parts) < IN_MEMORY:
        return file.read()
    with tempfile.NamedTemporaryFile(prefix="klent-", suffix=".arrow") as copy:
        with pyarrow.ipc.new_file(copy, file.schema_arrow) as writer:
            for batch in file.iter_batches(1000):
                writer.write_batch(batch)
        copy.flush()
        with pyarrow.memory_map(copy.name) as mapped:
            return pyarrow.ipc.open_file(mapped).read_all()


def _dataset(data: str, path: Path, split: str, subset: str | None, key: str) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{key}: {data} is not a .jsonl, .csv or .parquet file; a dataset needs: pip install 'klent[data]'"
        ) from error
    saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    try:
        if saved:
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.is_dir() else data, name=subset, split=split)
    except Exception as error:  # the library raises anything from KeyError to its HTTP client's errors
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{key}: cannot load {data!r} (split {split!r}): {reason}") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            splits = ", ".join(loaded)
            raise ConfigError(f"task.split: {data} has no {split!r}{nearest(split, loaded)}; it has {splits}")
        loaded = loaded[split]
    return _Cells(f"{data}/{split}", len(loaded), loaded.__getitem__, lambda: loaded)


def _as_json(row: Mapping[str, object]) -> Row:
    columns = {name: _without_filling(_json_value(value)) for name, value in row.items()}
    return {name: value for name, value in columns.items() if value is not _LEFT_OUT}


def _without_filling(value: object) -> object:
    """Messages and tools without the nulls that a table fills in where only other rows have a field."""
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and {"role", "function"} & item.keys() for item in value
    ):
        return value
    return [_filled_fields(item) for item in value]


def _filled_fields(value: object) -> object:
    if isinstance(value, dict):
        return {key: _filled_fields(item) for key, item in value.items() if item is not None}
    return [_filled_fields(item) for item in value] if isinstance(value, list) else value


def _json_value(value: object) -> object:
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

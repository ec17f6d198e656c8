"""A collection as training data: its segments, what each is worth, and which of two is preferred."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from klent.config.collection import CollectionSettings
from klent.errors import DataError, first_line
from klent.io.files import read_jsonl, read_text
from klent.kit.seeds import derive_seed
from klent.tasks.collect import SETTINGS, shard_path

Label = Literal["regret", "return", "success"]
"""What a segment is preferred for: little regret, a large return, or success."""

_TRIES = 1000  # at a pair of segments that differ


@dataclass(frozen=True)
class Segments:
    """The segments of a collection; N of them, of T steps.

    Attributes:
        settings: that it was recorded with.
        numbers: of each, as the collection counts.
        observation: ``[N, T, D]``.
        action: as drawn, ``[N, T, A]``.
        mean: of the behaviour policy's action, ``[N, T, A]``.
        std: of the behaviour policy's action, ``[N]``.
        worth: by label, ``[N]``: minus the regret, the return, or 1 for success.
        branch_time: see :class:`klent.environments.robot.segments.Branches`; None where none were recorded.
        branch_observation: likewise, ``[N, m, k, T, D]``.
        branch_mean: likewise, ``[N, m, k, T, A]``.
    """

    settings: CollectionSettings
    numbers: Sequence[int]
    observation: Tensor
    action: Tensor
    mean: Tensor
    std: Tensor
    worth: dict[Label, Tensor]
    branch_time: Tensor | None = None
    branch_observation: Tensor | None = None
    branch_mean: Tensor | None = None

    def __len__(self) -> int:
        return len(self.numbers)


def read_segments(folder: Path) -> Segments:
    """The segments of a collection that is complete.

    Raises:
        DataError: it is not there, not complete, or damaged.
    """
    settings = _settings(folder)
    rows: list[dict[str, object]] = []
    arrays: list[dict[str, Tensor]] = []
    for number in range(-(-settings.segments // settings.shard)):
        path = shard_path(folder, number)
        lines = list(read_jsonl(path.with_suffix(".jsonl"), on_damage=_refuse))
        if not lines:
            raise DataError(
                f"{folder} is not complete: {len(rows)} of {settings.segments} segments are recorded. Run the same "
                "`klent collect` again, which goes on"
            )
        try:
            arrays.append(load_file(path.with_suffix(".safetensors")))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}.safetensors cannot be read: {first_line(error)}. Remove both of the shard's files, and run "
                "the same `klent collect` again"
            ) from error
        rows += lines
    whole = {name: torch.cat([some[name] for some in arrays]) for name in arrays[0]}
    if any(len(values) != len(rows) for values in whole.values()) or len(rows) != settings.segments:
        raise DataError(
            f"{folder} is damaged: its shards do not have one line for each segment. Record it again with `klent "
            "collect`"
        )
    whole.pop("reward")
    return Segments(settings, [_integer(row, "segment") for row in rows], std=_column(rows, "std"), worth={
        "regret": -_column(rows, "regret"),
        "return": _column(rows, "return"),
        "success": _column(rows, "success"),
    }, **whole)  # fmt: skip


def _settings(folder: Path) -> CollectionSettings:
    file = folder / SETTINGS
    if not file.is_file():
        raise DataError(f"{folder} holds no collection: it has no {SETTINGS}. Make one with `klent collect`")
    try:
        return CollectionSettings.model_validate_json(read_text(file))
    except ValidationError as error:
        raise DataError(
            f"{file}: {first_line(error)}: the file was edited. Record the collection again with `klent collect`"
        ) from error


def _refuse(problem: str) -> None:
    raise DataError(problem)


def _column(rows: Sequence[dict[str, object]], name: str) -> Tensor:
    return torch.tensor([_number(row, name) for row in rows])


def _number(row: dict[str, object], name: str) -> float:
    value = row.get(name)
    if not isinstance(value, int | float):
        raise DataError(f"segment {row.get('segment')}: {name!r} is {value!r}, expected a number")
    return float(value)


def _integer(row: dict[str, object], name: str) -> int:
    return int(_number(row, name))


class Comparisons:
    """Which of two segments is preferred, pair by pair: a function of the position alone.

    Args:
        worth: of each segment, ``[N]``; the pairs are of segments that differ in it.
        count: the pairs that were compared, which are gone through again and again ("sparse"); None = all segments
            are ranked, and every pair is a new one ("dense").
        seed: decides which.

    Raises:
        DataError: all segments are worth the same.

    Example:
        >>> import torch
        >>> comparisons = Comparisons(torch.tensor([0.5, 0.9]), count=None, seed=0)
        >>> comparisons.pair(0), comparisons.pair(1)
        ((1, 0), (1, 0))
    """

    def __init__(self, worth: Tensor, *, count: int | None, seed: int) -> None:
        if len(worth) < 2 or bool((worth == worth[0]).all()):
            raise DataError("all segments have the same label, so none is preferred. Choose another label")
        self.worth = worth.tolist()
        self.count = count
        self.seed = seed

    def pair(self, position: int) -> tuple[int, int]:
        """The better and the worse segment of the pair at a position, from 0."""
        number = position if self.count is None else position % self.count
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "pair", number))
        for _ in range(_TRIES):
            first, second = torch.randint(len(self.worth), (2,), generator=generator).tolist()
            if self.worth[first] != self.worth[second]:
                return (first, second) if self.worth[first] > self.worth[second] else (second, first)
        raise DataError(
            f"in {_TRIES} draws no two segments had different labels: almost all are equal. Choose another label"
        )

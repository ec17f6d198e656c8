"""Checkpoints of ranks that hold a part of each weight: every rank writes and reads its own parts.

The format is that of ``torch.distributed.checkpoint`` with safetensors files: one folder for each group of tensors,
one file for each rank, whose header says where in the whole its tensors begin. There is no metadata file, which
would be a pickle. Any number of ranks reads it, each only what it holds; and the same reader reads the files that one
process writes.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from klent.errors import CheckpointError
from klent.io.files import sha256_file
from klent.kit.world import World
from klent.training.ranks import from_first

TensorGroups = Mapping[str, Mapping[str, Tensor]]


class FileEntry(TypedDict):
    """One file in a checkpoint's manifest."""

    sha256: str
    bytes: int


class Saved(NamedTuple):
    """Shape and type of a tensor on the disk."""

    shape: torch.Size
    dtype: torch.dtype


def write_parts(scratch: Path | None, groups: TensorGroups, world: World) -> dict[str, FileEntry]:
    """Write each group as a folder of the checkpoint, every rank its own parts; all ranks call this together.

    Args:
        scratch: the checkpoint's folder, as the first rank has made it; the others hear of it.
        groups: name of a folder -> name -> tensor; what is whole on every rank is written once.
        world: the ranks.

    Returns:
        The files by their names in the checkpoint, for its manifest, the same on every rank.

    Raises:
        OSError: a rank cannot write, or writes where the first one does not see it.
    """
    folder = Path(from_first(world, lambda: str(scratch).encode()).decode())
    for name, tensors in groups.items():
        writer = dcp.HuggingFaceStorageWriter(str(folder / name), save_distributed=True)
        try:
            dcp.save(dict(tensors), storage_writer=writer)
        except CheckpointException as error:
            raise OSError(_first_failure(error)) from error
    files, gap = json.loads(from_first(world, lambda: json.dumps(_written(folder, groups)).encode()))
    if gap:
        raise OSError(gap)
    mine = {
        name: FileEntry(sha256=sha256_file(folder / name), bytes=(folder / name).stat().st_size)
        for name in files[world.rank :: world.size]
    }
    entries: dict[str, FileEntry] = {}
    for said in world.gather(json.dumps(mine).encode()):
        entries |= json.loads(said)
    return entries


def saved_tensors(checkpoint: Path, group: str) -> dict[str, Saved]:
    """What a group of a checkpoint has, by name, whoever wrote it; only the files' headers are read."""
    found = {
        name: Saved(item.size, item.properties.dtype)
        for name, item in _metadata(checkpoint, group).items()
        if isinstance(item, TensorStorageMetadata)
    }
    if is_sharded(checkpoint, group):
        return found
    with safe_open(checkpoint / f"{group}.safetensors", framework="pt") as file:
        own = set(file.keys())
    return {name: saved for name, saved in found.items() if name in own}


def read_parts(checkpoint: Path, group: str, into: Mapping[str, Tensor]) -> None:
    """Fill tensors with what a group of a checkpoint has under their names; of a part only its values are read.

    Args:
        checkpoint: its folder, of any number of ranks.
        group: ``model`` or ``optimizer``.
        into: by name, of the saved shapes; whole, or parts.

    Raises:
        CheckpointError: a tensor is missing or cannot be read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        try:  # each rank for itself: nothing has to be agreed on
            dcp.load(dict(into), storage_reader=_reader(checkpoint, group), no_dist=True)
        except CheckpointException as error:
            said = _first_failure(error)
            raise CheckpointError(f"{checkpoint / group} cannot be read ({said})") from error


def whole_group(checkpoint: Path, group: str) -> dict[str, Tensor]:
    """Every tensor of a sharded group, put together on the CPU."""
    tensors = {
        name: torch.empty(saved.shape, dtype=saved.dtype)
        for name, saved in saved_tensors(checkpoint, group).items()
    }
    read_parts(checkpoint, group, tensors)
    return tensors


def is_sharded(checkpoint: Path, group: str) -> bool:
    """Whether several ranks wrote this group of a checkpoint."""
    return (checkpoint / group).is_dir()


def _reader(checkpoint: Path, group: str) -> dcp.HuggingFaceStorageReader:
    return dcp.HuggingFaceStorageReader(
        str(checkpoint / group if is_sharded(checkpoint, group) else checkpoint)
    )


def _metadata(checkpoint: Path, group: str) -> Mapping[str, object]:
    return _reader(checkpoint, group).read_metadata().state_dict_metadata


def _written(folder: Path, groups: TensorGroups) -> tuple[list[str], str]:
    """The files that this rank sees, and what is wrong where they do not hold every value of every tensor."""
    for group, tensors in groups.items():
        found = _metadata(folder, group)
        for name, tensor in tensors.items():
            item = found.get(name)
            chunks = item.chunks if isinstance(item, TensorStorageMetadata) else []
            if sum(chunk.sizes.numel() for chunk in chunks) != tensor.numel():
                return [], (
                    f"the first rank does not see all of {name}. All ranks must see the run's folder: put it on a "
                    "file system that they share"
                )
    files = (path for group in groups for path in (folder / group).iterdir())
    return sorted(path.relative_to(folder).as_posix() for path in files), ""


def _first_failure(error: CheckpointException) -> str:
    for rank, (cause, _) in sorted(error.failures.items()):
        said = str(cause).splitlines()
        return f"rank {rank}: {said[0] if said else type(cause).__name__}"
    return "no rank says why"

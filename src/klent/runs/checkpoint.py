"""Checkpoints: everything that a killed run needs to continue as if it had not been interrupted.

``checkpoints/STEP/`` holds one safetensors file per group of tensors, ``state.json`` for the rest, and
``manifest.json`` with the size and SHA-256 of each. A group that several ranks wrote is a folder
(:mod:`klent.runs.sharded_checkpoint`). The folder is written under a hidden name and renamed
last, so a folder with a number is complete unless it was damaged later, which the hashes detect.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from klent.errors import CheckpointError
from klent.io.files import sha256_file
from klent.io.folders import remove_folder, sweep, whole_folder
from klent.runs.sharded_checkpoint import FileEntry, TensorGroups, whole_group
from klent.training.shards import cut_like

MANIFEST, STATE = "manifest.json", "state.json"
SPARE_BYTES = 1 << 20  # JSON, headers and the folder itself


@dataclass(frozen=True)
class Checkpoint:
    """What :func:`save_checkpoint` was given, bit for bit. The tensors are on the CPU."""

    step: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    run: Path,
    step: int,
    *,
    tensors: TensorGroups,
    state: Mapping[str, object],
    keep: int = 2,
    parts: Callable[[Path], Mapping[str, FileEntry]] | None = None,
    parts_bytes: int = 0,
) -> Path:
    """Write ``checkpoints/STEP`` completely or not at all, then remove all but the newest ``keep``.

    Args:
        run: the run's folder; this process must hold its lock.
        step: training steps done.
        tensors: name of a file -> name -> tensor, such as ``{"model": {...}, "optimizer": {...}}``.
        state: anything that JSON can hold; Python floats are restored bit for bit.
        keep: how many checkpoints are kept, at least 1.
        parts: writes what several ranks hold into the unfinished folder, and names its files.
        parts_bytes: how much that is.

    Returns:
        The checkpoint's folder, which is on disk when this returns.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written. Earlier checkpoints are untouched.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder = _checkpoints(run) / f"{step:06d}"
    needed = sum(t.nbytes for group in tensors.values() for t in group.values()) + parts_bytes + SPARE_BYTES
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent)
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        with whole_folder(folder) as scratch:
            files = dict(parts(scratch)) if parts else {}
            for name, group in tensors.items():
                files[f"{name}.safetensors"] = _write_tensors(scratch / f"{name}.safetensors", group)
            files[STATE] = _write_json(scratch / STATE, dict(state))
            _write_json(scratch / MANIFEST, {"step": step, "files": files})
    except OSError as error:
        raise CheckpointError(_cannot_save(run, folder, needed, error)) from error
    _prune(run, step, keep)
    return folder


def load_newest(
    run: Path, *, on_damage: Callable[[str], None], without: Collection[str] = ()
) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as it was written, or None if there is none.

    Args:
        run: the run's folder.
        on_damage: called with one line per damaged checkpoint that was skipped: what is wrong with it, and
            which one is used instead.
        without: groups of tensors whose bytes are compared and not kept.
    """
    damage: list[str] = []
    checkpoint = None
    for folder in reversed(_numbered(run)):
        try:
            checkpoint = _read(folder, without)
            break
        except CheckpointError as error:
            damage.append(f"checkpoints/{folder.name} is damaged: {error}")
    instead = f"using checkpoints/{checkpoint.path.name}" if checkpoint else "no intact checkpoint is left"
    for line in damage:
        on_damage(f"{line}; {instead}")
    return checkpoint


def load_step(run: Path, step: int | None, *, on_damage: Callable[[str], None]) -> Checkpoint:
    """The checkpoint of a step; None = the newest that is intact.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names those that there are.
    """
    names = [folder.name for folder in _numbered(run)]
    if step is None:
        newest = load_newest(run, on_damage=on_damage)
        if newest is None:
            raise CheckpointError(
                f"{run} has no intact checkpoint; train it until one is saved (checkpoint.every)"
            )
        return newest
    folder = next((folder for folder in _numbered(run) if int(folder.name) == step), None)
    if folder is None:
        steps = ", ".join(str(int(name)) for name in names) or "none"
        raise CheckpointError(
            f"{run} has no checkpoint of step {step}; there are: {steps}. checkpoint.every and checkpoint.keep "
            "decide which are written and kept"
        )
    try:
        return _read(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def peek_newest(run: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest checkpoint whose state is intact, without its tensors; None if there is none."""
    for folder in reversed(_numbered(run)):
        try:
            entry = _manifest(folder)[1][STATE]
            _check_file(folder / STATE, *entry)
            state = json.loads((folder / STATE).read_bytes())
        except (CheckpointError, KeyError, OSError, ValueError):
            continue
        if isinstance(state, dict):
            return int(folder.name), state
    return None


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimizer's state as one flat table: ``exp_avg.<name>``, ``exp_avg_sq.<name>``, ``step.<name>``.

    Args:
        optimizer: any whose state is tensors, such as AdamW.
        parameters: name -> the parameter that the optimizer holds. A parameter that never had a gradient has
            no state, and is not in the table.

    Returns:
        The optimizer's own tensors, not copies. The learning rate and other settings are not included: they
        are in the recipe.
    """
    return {
        f"{key}.{name}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Restore what :func:`flatten_optimizer` returned, bit for bit, step counters too. Tensors are copied.

    Raises:
        CheckpointError: a name or a shape that this model does not have.
    """
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {id(parameter): i for i, parameter in enumerate(ordered)}
    state: dict[int, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint's optimizer has {name!r}, which this model does not have")
        parameter = parameters[name]
        if value.dim() > 0 and value.shape != parameter.shape:
            shapes = f"{list(value.shape)}, but this model's is {list(parameter.shape)}"
            raise CheckpointError(f"the checkpoint's {full_name} has shape {shapes}")
        state.setdefault(index[id(parameter)], {})[key] = cut_like(value.clone(), parameter)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # it wraps an error of the file system
        raise OSError(str(error)) from error
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _write_json(path: Path, content: object) -> FileEntry:
    data = (json.dumps(content, indent=1) + "\n").encode()
    with open(path, "wb") as file:
        file.write(data)
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _cannot_save(run: Path, folder: Path, needed: int, error: OSError) -> str:
    try:
        space = (
            f" It needs {needed / 1e9:.2f} GB and {shutil.disk_usage(run).free / 1e9:.2f} GB is free there."
        )
    except OSError:
        space = ""
    earlier = [other.name for other in _numbered(run)]
    if earlier:
        after = (
            f"checkpoints/{earlier[-1]} is untouched: free space, and `klent resume {run}` continues from it"
        )
    else:
        after = f"There is no earlier one: free space, and `klent resume {run}` starts over"
    reason = error.strerror or str(error)
    return f"cannot write checkpoint {folder}: {reason}.{space} No partial checkpoint is left. {after}"


def _prune(run: Path, step: int, keep: int) -> None:
    """Keep the newest ``keep``. A later step's is damaged, or the run would have continued from it."""
    numbered = _numbered(run)
    later = [folder for folder in numbered if int(folder.name) > step]
    for folder in later + [folder for folder in numbered if folder not in later][:-keep]:
        remove_folder(folder)


def _checkpoints(run: Path) -> Path:
    return run / "checkpoints"


def _numbered(run: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first."""
    folders = [path for path in _checkpoints(run).glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name))


def _read(folder: Path, without: Collection[str] = ()) -> Checkpoint:
    """Read a checkpoint, or raise CheckpointError with what is wrong with it."""
    step, files = _manifest(folder)
    for name, (size, sha256) in files.items():
        _check_file(folder / name, size, sha256)
    try:
        groups = {
            name.split("/")[0].removesuffix(".safetensors"): "/" in name for name in files if name != STATE
        }
        tensors = {
            name: whole_group(folder, name) if sharded else load_file(folder / f"{name}.safetensors")
            for name, sharded in groups.items()
            if name not in without
        }
        state = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"it cannot be read ({error})") from error
    return Checkpoint(step=step, path=folder, tensors=tensors, state=state)


def _manifest(folder: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    """The step of a checkpoint, and size and hash of each of its files."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        return int(manifest["step"]), files
    except FileNotFoundError as error:
        raise CheckpointError(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read ({error})") from error


def _check_file(path: Path, size: int, sha256: str) -> None:
    try:
        actual = path.stat().st_size
        if actual != size:
            raise CheckpointError(f"{path.name} has {actual} bytes, but {size} were written")
        if sha256_file(path) != sha256:
            raise CheckpointError(f"{path.name} has the wrong hash")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror or error})") from error

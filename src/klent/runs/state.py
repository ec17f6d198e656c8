"""What a run would lose if its process died: weights, optimizer, organs; saved and taken back bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from klent.errors import CheckpointError
from klent.runs.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    load_newest,
    restore_optimizer,
    save_checkpoint,
)
from klent.runs.folder import RunFolder
from klent.runs.sharded_checkpoint import TensorGroups, read_parts, saved_tensors, write_parts
from klent.training.shards import cut_like
from klent.training.update import Updater

OF_UPDATER = ("model", "optimizer")
"""The groups of a checkpoint of which a rank may hold a part."""

OF_CRITIC = "critic."
"""Begins the names of a critic's parameters."""


class Stateful(Protocol):
    """Something with a state of its own."""

    name: str

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


@runtime_checkable
class HoldsTensors(Protocol):
    """Something whose state has tensors too: a checkpoint keeps them in a file of its name."""

    def tensors(self) -> Mapping[str, torch.Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None: ...


class RunState:
    """Saves and restores everything that a step changes.

    Args:
        folder: the run's.
        updater: its policy's parameters and optimizer.
        holders: the organs and whatever else has a state, by name.
        keep: how many checkpoints stay.
        on_damage: told of each damaged file, in one line.
        run: the folder of the first rank's checkpoints, where this rank follows it; None = it is the first.
    """

    def __init__(
        self,
        folder: RunFolder,
        updater: Updater,
        holders: Sequence[Stateful],
        *,
        keep: int,
        on_damage: Callable[[str], None],
        run: Path | None = None,
    ) -> None:
        self.folder = folder
        self.run = run or folder.path
        self.updater = updater
        self.trainable = updater.moved
        self.holders = {holder.name: holder for holder in holders}
        if len(self.holders) != len(holders):
            raise ValueError(
                f"two parts of the run have one name: {sorted(holder.name for holder in holders)}"
            )
        self.keep = keep
        self.on_damage = on_damage
        self.fingerprint: Mapping[str, object] = {}  # of what the run reads, for every checkpoint to store

    def save(self, step: int) -> None:
        """Write the checkpoint of ``step`` steps done; ranks that hold parts of the weights write them together."""
        writes, updater = self.run == self.folder.path, self.updater
        groups: TensorGroups = {
            "model": {name: p.detach() for name, p in self.trainable.items()},
            "optimizer": flatten_optimizer(updater.optimizer, self.trainable),
        }
        if not writes:
            if updater.sharded:
                self._follow(groups, step)
            return
        kept = {name: one.tensors() for name, one in self.holders.items() if isinstance(one, HoldsTensors)}
        apart = updater.sharded
        save_checkpoint(
            self.folder.path,
            step,
            tensors={
                **({} if apart else groups),
                **{name: tensors for name, tensors in kept.items() if tensors},
            },
            state={
                "step": step,
                "optimizer_steps": updater.steps_done,
                "organs": {name: holder.state_dict() for name, holder in self.holders.items()},
                "offsets": self.folder.offsets(),
                "fingerprint": self.fingerprint,
            },
            keep=self.keep,
            parts=partial(write_parts, groups=groups, world=updater.world) if apart else None,
            parts_bytes=sum(t.nbytes for group in groups.values() for t in group.values()) if apart else 0,
        )

    def _follow(self, groups: TensorGroups, step: int) -> None:
        try:
            write_parts(None, groups, self.updater.world)
        except OSError as error:
            raise CheckpointError(f"cannot write the checkpoint of step {step}: {error}") from error

    def restore(self) -> int:
        """Go back to the newest whole checkpoint, or to the beginning where there is none; the steps done."""
        apart = OF_UPDATER if self.updater.sharded else ()
        checkpoint = load_newest(self.run, on_damage=self.on_damage, without=apart)
        if checkpoint is None:
            self.folder.truncate_logs({}, on_damage=self.on_damage)
            return 0
        remedy = self._remedy("model and lora")
        if self.updater.sharded:
            optimizer = take_parts(checkpoint.path, self.trainable, remedy)
        else:
            take_weights(checkpoint, self.trainable, remedy)
            optimizer = checkpoint.tensors["optimizer"]
        restore_optimizer(self.updater.optimizer, self.trainable, optimizer)
        self.updater.steps_done = checkpoint.state["optimizer_steps"]
        for name, state in checkpoint.state["organs"].items():
            self._restore_organ(checkpoint, name, state)
        self.folder.truncate_logs(checkpoint.state["offsets"], on_damage=self.on_damage)
        return int(checkpoint.state["step"])

    def _restore_organ(self, checkpoint: Checkpoint, name: str, state: Mapping[str, object]) -> None:
        if name not in self.holders:
            self.on_damage(f"{checkpoint.path} has a state of {name}, which the recipe does not ask for")
            return
        try:
            holder = self.holders[name]
            holder.load_state_dict(state)
            if isinstance(holder, HoldsTensors) and (holder.tensors() or name in checkpoint.tensors):
                holder.load_tensors(checkpoint.tensors[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} has a state of {name} that does not fit the recipe: {error!r}. "
                f"{self._remedy(name)}"
            ) from error

    def _remedy(self, what: str) -> str:
        return f"Put back {what} in {self.folder.config}, or start another run with name=..."


def policy_of(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without its critic: what is needed of it to write."""
    weights = checkpoint.tensors.get("model", {})
    kept = {name: value for name, value in weights.items() if not name.startswith(OF_CRITIC)}
    return replace(checkpoint, tensors={**checkpoint.tensors, "model": kept})


def take_weights(checkpoint: Checkpoint, trainable: Mapping[str, torch.nn.Parameter], remedy: str) -> None:
    """Copy a checkpoint's weights into the parameters that were trained.

    Raises:
        CheckpointError: they are of another model or adapter; none of them is taken over then.
    """
    saved = checkpoint.tensors.get("model", {})
    _refuse_others(checkpoint.path, {name: value.shape for name, value in saved.items()}, trainable, remedy)
    with torch.no_grad():
        for name, value in saved.items():
            trainable[name].copy_(cut_like(value, trainable[name]))


def take_parts(
    checkpoint: Path, trainable: Mapping[str, torch.nn.Parameter], remedy: str
) -> dict[str, torch.Tensor]:
    """Read this rank's parts of a checkpoint's weights into the parameters, and of its optimizer's state.

    Returns:
        The state of the optimizer, as :func:`klent.runs.checkpoint.restore_optimizer` takes it, cut as the weights.

    Raises:
        CheckpointError: they are of another model; none of them is taken over then.
    """
    shapes = {name: saved.shape for name, saved in saved_tensors(checkpoint, "model").items()}
    _refuse_others(checkpoint, shapes, trainable, remedy)
    read_parts(checkpoint, "model", {name: parameter.detach() for name, parameter in trainable.items()})
    optimizer = {}
    for name, saved in saved_tensors(checkpoint, "optimizer").items():
        like = trainable.get(name.partition(".")[2])
        cut = like is not None and like.shape == saved.shape
        empty = torch.zeros_like(like.detach()) if cut and like is not None else torch.zeros(saved.shape)
        optimizer[name] = empty.to(saved.dtype)
    read_parts(checkpoint, "optimizer", optimizer)
    return optimizer


def _refuse_others(
    checkpoint: Path,
    saved: Mapping[str, torch.Size],
    trainable: Mapping[str, torch.nn.Parameter],
    remedy: str,
) -> None:
    for name in sorted(saved.keys() ^ trainable.keys()):
        owner, other = ("checkpoint", "model") if name in saved else ("model", "checkpoint")
        raise CheckpointError(
            f"{checkpoint} is of another model: the {owner} trains {name}, the {other} does not. {remedy}"
        )
    for name, shape in saved.items():
        if shape != trainable[name].shape:
            shapes = f"{list(shape)}, and this model's is {list(trainable[name].shape)}"
            raise CheckpointError(
                f"{checkpoint} is of another model: the shape of {name} is {shapes}. {remedy}"
            )

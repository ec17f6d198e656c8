"""What a run would lose if its process died: weights, optimizer, organs; saved and taken back bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from klent.runs.checkpoint import flatten_optimizer, load_newest, restore_optimizer, save_checkpoint
from klent.runs.folder import RunFolder
from klent.training.update import Updater


class Stateful(Protocol):
    """Something with a state of its own."""

    name: str

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class RunState:
    """Saves and restores everything that a step changes.

    Args:
        folder: the run's.
        updater: its policy's parameters and optimizer.
        holders: the organs and whatever else has a state, by name.
        keep: how many checkpoints stay.
        on_damage: told of each damaged file, in one line.
    """

    def __init__(
        self,
        folder: RunFolder,
        updater: Updater,
        holders: Sequence[Stateful],
        *,
        keep: int,
        on_damage: Callable[[str], None],
    ) -> None:
        self.folder = folder
        self.updater = updater
        self.trainable = updater.policy.trainable()
        self.holders = {holder.name: holder for holder in holders}
        if len(self.holders) != len(holders):
            raise ValueError(f"two organs of one name: {sorted(holder.name for holder in holders)}")
        self.keep = keep
        self.on_damage = on_damage

    def save(self, step: int) -> None:
        """Write the checkpoint of ``step`` steps done."""
        save_checkpoint(
            self.folder.path,
            step,
            tensors={
                "model": {name: p.detach() for name, p in self.trainable.items()},
                "optimizer": flatten_optimizer(self.updater.optimizer, self.trainable),
            },
            state={
                "step": step,
                "optimizer_steps": self.updater.steps_done,
                "organs": {name: holder.state_dict() for name, holder in self.holders.items()},
                "offsets": self.folder.offsets(),
            },
            keep=self.keep,
        )

    def restore(self) -> int:
        """Go back to the newest whole checkpoint, or to the beginning where there is none; the steps done."""
        checkpoint = load_newest(self.folder.path, on_damage=self.on_damage)
        if checkpoint is None:
            self.folder.truncate_logs({}, on_damage=self.on_damage)
            return 0
        with torch.no_grad():
            for name, value in checkpoint.tensors["model"].items():
                self.trainable[name].copy_(value)
        restore_optimizer(self.updater.optimizer, self.trainable, checkpoint.tensors["optimizer"])
        self.updater.steps_done = checkpoint.state["optimizer_steps"]
        for name, state in checkpoint.state["organs"].items():
            if name in self.holders:
                self.holders[name].load_state_dict(state)
        self.folder.truncate_logs(checkpoint.state["offsets"], on_damage=self.on_damage)
        return int(checkpoint.state["step"])

"""Values from logged play: the Bellman target of every action, and the network that it is read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from klent.control.organ import Organ, StepRecord
from klent.policies.causal_lm.best_next import BestNext
from klent.policies.causal_lm.expected_next import ExpectedNext
from klent.streams.batch import Batch
from klent.tasks.returns import to_go


@dataclass(frozen=True)
class Scale:
    """What values are measured in: what can still be earned, from the least to the most, as [0, 1].

    Attributes:
        least, most: that can be earned from any turn on.
        discount: what a reward is worth one turn earlier; 1 inside a turn.
    """

    least: float
    most: float
    discount: float

    def of(self, earned: float) -> float:
        """A sum of rewards as a value; outside [0, 1] where it is out of bounds.

        >>> Scale(-1.0, 3.0, 1.0).of(1.0)
        0.5
        """
        span = self.most - self.least
        return (earned - self.least) / span if span else float(earned >= self.most)

    def after(self, reward: float, value: float) -> float:
        """The value of a turn that earned a reward and led to a state of this value."""
        return self.of(reward + self.discount * (self.least + (self.most - self.least) * value))


class BellmanTargets(Organ):
    """Fills the stream ``weight`` of a step's episodes, and moves the target network after it.

        w_t = clip(r + gamma max_a p(a|s')/π(a|s'), 0, 1)

    Within a turn ``r`` is 0 and ``gamma`` 1. What an episode's last action led to is worth nothing more, and
    where the data's model supports no action the least value is taken.

    Args:
        scale: of the values.
        best: the largest ratio at each state, or the critic's value of it, in place of the maximum; None = no
            network: the weight is what was earned from the turn on.
        rate: of the policy's weights that joins the target network after each step.
        names: the trained parameters by name, for the checkpoint.
    """

    name = "bellman"

    def __init__(
        self,
        scale: Scale,
        best: BestNext | ExpectedNext | None,
        *,
        rate: float,
        names: Mapping[str, torch.nn.Parameter],
    ) -> None:
        self.scale = scale
        self.best = best
        self.rate = rate
        self.names = dict(names) if best is not None else {}
        self.row: dict[str, float] = {}

    def after_rollout(self, batch: Batch) -> None:
        """Fill ``weight``, ``[B, T]``."""
        raw = torch.zeros(batch.mask.shape, dtype=torch.float64)
        values = None if self.best is None else self.best.values(batch)
        for number, episode in enumerate(batch.episodes):
            acted = episode.acted.nonzero()[:, 0]
            turns = episode.turn[acted].tolist()
            if values is None:
                sums = to_go(episode.rewards, self.scale.discount)
                targets = [self.scale.of(sums[turn]) for turn in turns]
            else:
                known = values[number, acted].nan_to_num(nan=0.0).tolist()
                targets = turn_targets(self.scale, episode.rewards, turns, known)
            raw[number, acted] = torch.tensor(targets, dtype=torch.float64)
        batch.streams.weight = raw.clamp(0, 1).float()
        self.row = self._row(batch, raw, values)

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """Move the target network, and tell of the step's targets: ``bellman/...``."""
        if self.best is not None:
            self.best.kept.blend(self.rate)
        return self.row

    def _row(self, batch: Batch, raw: Tensor, values: Tensor | None) -> dict[str, float]:
        targets = raw[batch.mask]
        row = {
            "bellman/target": float(targets.clamp(0, 1).mean()),
            "bellman/clipped": float(((targets < -1e-6) | (targets > 1 + 1e-6)).double().mean()),
            "bellman/least": self.scale.least,
            "bellman/most": self.scale.most,
        }
        if values is not None:
            row["bellman/unsupported"] = float(values[batch.mask].isnan().double().mean())
        return row

    def tensors(self) -> dict[str, Tensor]:
        """The target network, by the names of the trained parameters."""
        if self.best is None:
            return {}
        return {name: self.best.kept.exact(p) for name, p in self.names.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`tensors` gave.

        Raises:
            KeyError, ValueError: it is of another model.
        """
        if self.best is None:
            return
        for name, mine in self.tensors().items():
            if tensors[name].shape != mine.shape:
                raise ValueError(f"{name} has shape {list(tensors[name].shape)}, not {list(mine.shape)}")
            self.best.kept.take(self.names[name], tensors[name])


class ConstantWeights(Organ):
    """Fills the stream ``weight`` with one number: the control of values, as it knows nothing of rewards.

    Trained to the end, p is weight times what the data's model says, and the dummy has the rest; without a dummy it
    is label smoothing of that strength.

    Args:
        weight: of every action, in (0, 1].
    """

    name = "bellman"

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def after_rollout(self, batch: Batch) -> None:
        """Fill ``weight``, ``[B, T]``."""
        batch.streams.weight = self.weight * batch.mask.float()

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """Tell of the step's targets: ``bellman/target``."""
        return {"bellman/target": self.weight}


def turn_targets(
    scale: Scale, rewards: Sequence[float], turns: Sequence[int], values: Sequence[float]
) -> list[float]:
    """The Bellman target of each action of an episode, before it is clipped.

    Args:
        scale: of the values.
        rewards: of the turns.
        turns: the turn that each action belongs to.
        values: of the state before each action, in [0, 1].

    >>> turn_targets(Scale(0.0, 1.0, 0.5), [0.25, 1.0], [0, 0, 1], [0.1, 0.2, 0.8])
    [0.2, 0.65, 1.0]
    """
    targets = []
    for place, turn in enumerate(turns):
        if place + 1 == len(turns):
            targets.append(scale.of(rewards[turn]))
        elif turns[place + 1] == turn:
            targets.append(values[place + 1])
        else:
            targets.append(scale.after(rewards[turn], values[place + 1]))
    return targets

"""How much of an update survives the type of the weights: ``update/rounded_away``."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from klent.control.organ import Organ, StepRecord
from klent.kit.world import OneProcess, World
from klent.training.shards import own_part

SAMPLE = 4096  # numbers looked at of each parameter, evenly spaced: the share is known to a thousandth or so
MOST = 0.5  # of the updates: beyond it, a warning


class RoundedAway(Organ):
    """Watches an optimizer: of the numbers with a gradient, the share that a step left as they were, bit for bit.

    An AdamW step moves a number by about the learning rate. Where that is below half a unit in the last place the
    sum is the number itself, and what was learnt is lost, this time and every time.

    Args:
        optimizer: of the weights that are stored: of master weights, where there are some.
        warn: told once, where most updates vanish.
        world: the ranks of which each holds a part of every weight; None = this process has all.
    """

    name = "rounding"

    def __init__(
        self, optimizer: torch.optim.Optimizer, warn: Callable[[str], None], world: World | None = None
    ) -> None:
        self.optimizer = optimizer
        self.warn = warn
        self.world = world or OneProcess()
        self.warned = False
        self.before: list[tuple[Tensor, Tensor]] = []
        self.lost: list[Tensor] = []
        self.moved: list[Tensor] = []
        optimizer.register_step_pre_hook(lambda *_: self._look())
        optimizer.register_step_post_hook(lambda *_: self._compare())

    def _sampled(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Some numbers of each parameter with a gradient, whether that is not 0, and how many each stands for."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"] if group["lr"] else ():
                if parameter.grad is not None:
                    apart = -(-parameter.numel() // SAMPLE)
                    values, first = own_part(parameter.detach())
                    evenly = slice(-first % apart, None, apart)  # the same numbers, whoever holds them
                    yield values[evenly], own_part(parameter.grad).values[evenly] != 0, apart

    def _look(self) -> None:
        self.before = [(values.clone(), moves) for values, moves, _ in self._sampled()]

    def _compare(self) -> None:
        for (before, moves), (values, _, apart) in zip(self.before, self._sampled(), strict=True):
            self.lost.append(((values == before) & moves).sum() * apart)
            self.moved.append(moves.sum() * apart)

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``update/rounded_away``, a fraction; nothing where no weight had a gradient."""
        counted = [int(torch.stack(some).sum()) if some else 0 for some in (self.lost, self.moved)]
        lost, moved = self.world.sum(torch.tensor(counted)).tolist()
        self.lost, self.moved = [], []
        if not moved:
            return {}
        share = lost / moved
        if share > MOST and not self.warned:
            self.warned = True
            self.warn(
                f"step {step.number}: {share:.0%} of the updates were rounded away: the weights' data type is too "
                "coarse for steps of this size, so most weights do not change. Set precision.weights=float32 (the "
                "model still computes in precision.compute), or raise optimizer.lr"
            )
        return {"update/rounded_away": share}

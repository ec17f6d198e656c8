"""Now and then, one row of the trainer's numbers beside the same row read alone: no packing, padding or cache.

Sampler and trainer are compared at every step, and agree where both are wrong in one way. What was asked when the
model was loaded was asked of the weights it had then, at lengths made up; this asks during the run.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from klent.control.organ import Organ, StepRecord
from klent.streams.batch import Batch, Stats

SPARSE = 64  # after this step, every 64th


def due(number: int) -> bool:
    """Steps 1, 2, 4, 8, 16, 32, 64, then every 64th.

    >>> [number for number in range(1, 200) if due(number)]
    [1, 2, 4, 8, 16, 32, 64, 128, 192]
    """
    return number % SPARSE == 0 or (number < SPARSE and number & (number - 1) == 0)


class Witness(Organ):
    """Compares the trainer's log-probabilities of the step's longest completion with those of its row alone.

    Args:
        trained: the trainer's numbers of these rows of a batch, ``[B, T]``.
        alone: log-probabilities of the tokens of one row, read alone, ``[L]``.
        agree: whether two of these differ by rounding only.
        warn: told once, where they do not.
    """

    name = "witness"

    def __init__(
        self,
        trained: Callable[[Batch, Sequence[int]], Stats],
        alone: Callable[[Batch, int], Tensor],
        agree: Callable[[Tensor, Tensor], bool],
        warn: Callable[[str], None],
    ) -> None:
        self.trained = trained
        self.alone = alone
        self.agree = agree
        self.warn = warn
        self.number = 0
        self.warned = False
        self.mismatch: float | None = None

    def before_step(self, number: int) -> None:
        """Only some steps are compared: see :func:`due`."""
        self.number = number

    def after_rollout(self, batch: Batch) -> None:
        """Before the update: both numbers are of the weights that sampled."""
        self.mismatch = None
        if not due(self.number):
            return
        row = int(batch.mask.sum(dim=1).argmax())
        beside = [other for other in range(len(batch)) if batch.group[other] == batch.group[row]]
        acted = batch.mask[row]
        ours = self.trained(batch, beside).logp[row][acted]
        expected = self.alone(batch, row).cpu().float()[acted[: len(batch.episodes[row].tokens)]]
        self.mismatch = float((ours - expected).abs().max()) if len(expected) else None
        if len(expected) and not self.agree(expected, ours) and not self.warned:
            self.warned = True
            self.warn(
                f"step {self.number}: the trainer's log-probabilities differ by up to {self.mismatch:.2g} nats from "
                "those of the same row read alone, so packing or padding changes the gradient. Set "
                "update.packing=off and attention=eager, and report the model's architecture"
            )

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``policy/row_mismatch``, nats, in the steps that are compared."""
        return {} if self.mismatch is None else {"policy/row_mismatch": self.mismatch}

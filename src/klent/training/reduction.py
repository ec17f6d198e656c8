"""How an optimizer step divides: counts are taken over the whole step, so that no cut of it changes the loss."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from klent.objectives import reduce_tokens
from klent.streams.batch import Batch


@dataclass(frozen=True)
class Reduction:
    """What a recipe's ``reduce`` says.

    Attributes:
        over: see :func:`klent.reduce_tokens`; ``pairs`` is a constant, the number of pairs.
        denominator: with ``constant``, what one completion counts for.
        count: ``all`` divides by every action of the step where only selected ones are trained on.
    """

    over: Literal["tokens", "sequences", "constant", "pairs"] = "tokens"
    denominator: float = 1.0
    count: Literal["selected", "all"] | None = None

    def counted(self, batch: Batch) -> Tensor:
        """The actions that an average is over, ``[B, T]`` bool."""
        return batch.mask if self.count == "all" else batch.trained

    def divisor(self, counted: Tensor) -> float:
        """What the optimizer step divides by, given the counted actions of its rows, on whatever rank."""
        if self.over == "tokens":
            return float(counted.sum())
        if self.over == "sequences":
            return float(counted.any(dim=1).sum())
        if self.over == "pairs":  # of sampled answers not all are in one
            return float(counted.any(dim=1).sum()) / 2
        return len(counted) * self.denominator

    def __call__(self, loss: Tensor, counted: Tensor, divisor: float) -> Tensor:
        """This part's share of the step's loss."""
        over = "constant" if self.over == "pairs" else self.over
        return reduce_tokens(loss, counted, over=over, denominator=divisor)

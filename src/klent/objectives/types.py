"""What every loss in this package returns."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["TokenLoss"]


class TokenLoss(NamedTuple):
    """A loss per token, and what a run should log about it.

    Sums and counts travel and means are taken once, so micro-batches, padding and ranks change no number.

    Attributes:
        loss: ``[B, T]``, exactly 0 off the mask, never averaged (``reduce_tokens`` does that). Its derivative
            is the update: a token with ``-dloss/dlogp > 0`` is pushed up, with ``< 0`` pushed down.
        metrics: name -> (sum, count), scalar tensors without gradient. Add both over micro-batches and ranks,
            then divide.
    """

    loss: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]

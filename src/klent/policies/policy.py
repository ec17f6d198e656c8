"""What a policy is: the numbers of its actions, and the parameters behind them."""

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import nn

from klent.streams.batch import Batch, Stats


class Policy(Protocol):
    """What the update trains: it owns how episodes are laid out, computed and turned into numbers.

    An action is whatever the policy chooses: a token, a motor command, a denoising step. The update sees the
    grid ``[rows, T]`` of log-probabilities and entropies, and nothing of how they came about. A reward model is
    asked for the ``score`` of texts; it is no distribution over actions, and both are 0 and read by nobody.
    """

    def evaluate(self, batch: Batch, rows: Sequence[int], *, also: Collection[str] = ()) -> Stats:
        """The numbers of these episodes' actions under the policy as it is, differentiable.

        Args:
            batch: the step.
            rows: which episodes; the answer's rows stand in this order.
            also: fields of :class:`klent.streams.batch.Stats` that are wanted beside log-probability and entropy;
                passed only where there is one. A policy leaves None what it has nothing for.
        """
        ...

    def microbatches(self, batch: Batch, rows: Sequence[int]) -> list[list[int]]:
        """The same rows cut into forward passes that fit into memory; a unit is never cut."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters to train, by name."""
        ...

    def train(self, mode: bool = True) -> object:
        """Switch dropout on, or with False off: then the numbers are those of the distribution sampled."""
        ...

"""What the policy is compared with: something that gives the reference's log-probability of every action."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from klent.policies.policy import Policy
from klent.streams.batch import Batch, Stats

Measure = Callable[[Batch, Sequence[int], Policy], Stats]


class Reference(Protocol):
    """Stands where a step asks for the stream ``logp_ref``."""

    def logp(self, batch: Batch, rows: Sequence[int] | None = None) -> Tensor:
        """Log-probability of each action of these rows, or of all, under the reference policy, nats.

        ``[B, T]``, 0 off the mask and in other rows.
        """
        ...


class MeasuredReference:
    """The reference policy itself, asked again for every batch.

    Args:
        policy: the reference, never trained.
        measure: numbers of some rows of a batch under a policy, as an updater measures them.
    """

    def __init__(self, policy: Policy, measure: Measure) -> None:
        self.policy = policy
        self.measure = measure

    def logp(self, batch: Batch, rows: Sequence[int] | None = None) -> Tensor:
        """One pass over these rows, without gradient."""
        return self.measure(batch, range(len(batch)) if rows is None else rows, self.policy).logp

"""Whose gradient moves the layers that a policy and a critic share."""

from collections.abc import Callable

from klent.control.organ import Organ, StepRecord

Shares = Callable[[], tuple[float, float]]
"""The squared gradients at the shared hidden states since the last call: of the policy's loss, of the critic's."""


class SharedTrunk(Organ):
    """Logs the critic's share of the gradient that enters the shared layers.

    Args:
        read: the two sums of squares of a step; reading starts them anew.
    """

    name = "shared_trunk"

    def __init__(self, read: Shares) -> None:
        self.read = read

    def before_step(self, number: int) -> None:
        """Start anew."""
        self.read()

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``value/gradient_share``: norm of the critic's gradient over the sum of both norms."""
        policy, critic = (square**0.5 for square in self.read())
        return {"value/gradient_share": critic / (policy + critic)} if policy + critic > 0 else {}

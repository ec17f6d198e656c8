"""The policy as it samples, kept for a step: what the optimizer steps of the step are held against."""

from klent.control.organ import Organ
from klent.policies.causal_lm.kept import KeptWeights


class Keeper(Organ):
    """Sets the weights aside before each step.

    Args:
        kept: where they are set aside.
    """

    name = "kept policy"

    def __init__(self, kept: KeptWeights) -> None:
        self.kept = kept

    def before_step(self, number: int) -> None:
        """Nothing has been sampled yet: these are the weights of the sampler."""
        self.kept.keep()

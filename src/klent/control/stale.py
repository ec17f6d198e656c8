"""Completions that are older than the policy they train: what is compared with what, and how old they are."""

from collections.abc import Mapping

from torch import Tensor

from klent.control.organ import Organ, StepRecord
from klent.rollout.ahead import Ahead
from klent.streams.batch import Batch


class StaleData(Organ):
    """Holds sampling that runs ahead, and takes ratios to the policy that sampled.

    Args:
        ahead: what samples.
        weighed: whether ``rollout.mismatch`` weighs by trainer/sampler; ratios are then to the start of the update.
    """

    name = "ahead"

    def __init__(self, ahead: Ahead, *, weighed: bool) -> None:
        self.ahead = ahead
        self.weighed = weighed

    def after_rollout(self, batch: Batch) -> None:
        """The start of the update is not what sampled: unless weights say so, the sampler is the old policy."""
        if not self.weighed:
            batch.streams.logp_old, batch.streams.entropy_old = (
                batch.streams.logp_gen,
                batch.streams.entropy_gen,
            )

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``policy/staleness``: optimizer steps between sampling and training."""
        return {"policy/staleness": float(step.batch.lag)}

    def tensors(self) -> dict[str, Tensor]:
        """What was sampled and not trained on."""
        return self.ahead.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.ahead.load_tensors(tensors)

    def close(self) -> None:
        """Sampling ends."""
        self.ahead.close()

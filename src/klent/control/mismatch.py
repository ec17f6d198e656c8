"""Weights for a sampler that computes other probabilities than the trainer does."""

import torch

from klent.config import Mismatch
from klent.control.mixing import effective_share
from klent.control.organ import Organ, StepRecord
from klent.objectives import importance_weight
from klent.streams.batch import Batch


class MismatchWeights(Organ):
    """Weighs what was sampled by trainer/sampler; every term of the loss gets the weight.

    Args:
        settings: the recipe's ``rollout.mismatch``.
    """

    name = "mismatch"

    def __init__(self, settings: Mismatch) -> None:
        self.settings = settings

    def after_rollout(self, batch: Batch) -> None:
        """Fill the stream ``importance_weight``, ``[B, T]``, from the numbers at the start of the step."""
        logp = batch.streams.read(("logp_old", "logp_gen"))
        ratio, outside, low, high = self.settings.bounds
        batch.streams.importance_weight = importance_weight(
            logp["logp_old"], logp["logp_gen"], batch.mask, ratio=ratio, low=low, high=high, outside=outside
        )

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``mismatch/...``: how far sampler and trainer are apart, and what the weights leave of the step."""
        batch = step.batch
        streams = batch.streams.read(("logp_old", "logp_gen", "importance_weight"))
        log_ratio = torch.where(batch.mask, streams["logp_old"] - streams["logp_gen"], 0.0).double()
        whole = self.settings.bounds.ratio == "sequence"
        return {
            "mismatch/log_ratio": float(log_ratio[batch.mask].abs().mean()),
            "mismatch/kept": float((streams["importance_weight"][batch.mask] != 0).double().mean()),
            "mismatch/ess": effective_share(log_ratio, batch.mask, whole=whole),
        }

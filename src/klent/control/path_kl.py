"""How far episodes are from the reference's: of policies whose every step has a divergence in closed form."""

import torch
from torch import Tensor

from klent.control.organ import Organ, StepRecord
from klent.policies.policy import Policy
from klent.streams.batch import Batch


class PathKL(Organ):
    """Measures KL(policy ‖ reference) of each step and of whole episodes, before the update.

        KL of paths = E over the policy's episodes of the sum over their steps of KL(step ‖ reference's step)

    Exact at each step, so that only which states were visited is left to chance. The KL between what episodes end
    in, such as images, is at most that of their paths.

    Args:
        policy: gives the stream ``kl``: the reverse divergence, whatever terms read under that name.
    """

    name = "path_kl"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.kl: Tensor | None = None

    def after_rollout(self, batch: Batch) -> None:
        """On the episodes of the step, under the weights that sampled them."""
        self.kl = step_kl(self.policy, batch)

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """``kl/reference``, nats per step; ``kl/sequence`` and ``policy/sequence_entropy``, nats per episode."""
        assert self.kl is not None
        row = {
            "kl/reference": float(self.kl[step.batch.mask].mean()),
            "kl/sequence": float(self.kl.sum(dim=1).mean()),
        }
        sampled = step.batch.at_sampling
        if sampled is not None:
            row["policy/sequence_entropy"] = float(sampled.entropy.sum(dim=1).mean())
        return row


@torch.no_grad()
def step_kl(policy: Policy, batch: Batch) -> Tensor:
    """The stream ``kl`` of every episode, ``[B, T]``, 0 off the mask, without dropout."""
    policy.train(False)
    grid = torch.zeros(batch.mask.shape)
    for rows in policy.microbatches(batch, range(len(batch))):
        kl = policy.evaluate(batch, rows, also=["kl"]).kl
        if kl is None:
            raise ValueError("the policy has no reference to measure the KL from; give it one")
        grid[rows] = kl.cpu()
    return grid

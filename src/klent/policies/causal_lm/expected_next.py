"""What implicit Q-learning reads before an update: a state's value by the critic, an action's by its target."""

import torch
from torch import Tensor

from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.policy import CausalPolicy
from klent.streams.batch import Batch


class ExpectedNext:
    """The critic's value of the state before each action; no maximum over actions is taken.

    Args:
        policy: what is trained, with a critic; its logits are values of actions.
        kept: the target network's weights, the critic's among them.
    """

    def __init__(self, policy: CausalPolicy, kept: KeptWeights) -> None:
        self.policy = policy
        self.kept = kept

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """Of every action's state, in [0, 1], ``[B, T]``, 0 off the mask; fills ``logit_target`` on the way."""
        values, logits = torch.zeros(batch.mask.shape), torch.zeros(batch.mask.shape)
        self.policy.train(False)
        for rows in self.policy.microbatches(batch, range(len(batch))):
            now = self.policy.evaluate(batch, rows, also=["value"]).value
            with self.kept.active():
                before = self.policy.evaluate(batch, rows, also=["logit"]).logit
            assert now is not None  # both were asked for
            assert before is not None
            values[rows], logits[rows] = now.float().cpu(), before.float().cpu()
        batch.streams.logit_target = logits
        return values.clamp(0, 1)

"""What implicit Q-learning reads before an update: a state's value by the critic, an action's by both targets."""

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
        """Of every action's state, in [0, 1], ``[B, T]``, 0 off the mask; fills both targets on the way."""
        values, first, second = (torch.zeros(batch.mask.shape) for _ in range(3))
        self.policy.train(False)
        for rows in self.policy.microbatches(batch, range(len(batch))):
            now = self.policy.evaluate(batch, rows, also=["value"]).value
            with self.kept.active():
                before = self.policy.evaluate(batch, rows, also=["logit", "logit_second"])
            assert now is not None  # all were asked for
            assert before.logit is not None
            assert before.logit_second is not None
            values[rows], first[rows] = now.float().cpu(), before.logit.float().cpu()
            second[rows] = before.logit_second.float().cpu()
        batch.streams.logit_target, batch.streams.logit_second_target = first, second
        return values.clamp(0, 1)

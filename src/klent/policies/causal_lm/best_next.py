"""The best that can follow: the largest ratio of a target network to the data's model, before each action."""

import math

import torch
from torch import Tensor

from klent.head.ratio import largest_log_ratio
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.policy import CausalPolicy
from klent.streams.batch import Batch


class BestNext:
    """``max_a p(a|s) / π(a|s)`` before each action, over what the data's model supports; without ``[N, V]``.

    Args:
        policy: what is trained; with the weights of ``kept`` it is the target network ``p``.
        kept: the target network's weights.
        behaviour: the model of the data, ``π``.
        min_behaviour: actions less likely than this in the data do not count.
    """

    def __init__(
        self, policy: CausalPolicy, kept: KeptWeights, behaviour: CausalPolicy, *, min_behaviour: float
    ) -> None:
        self.policy = policy
        self.kept = kept
        self.behaviour = behaviour
        self.floor = math.log(min_behaviour) if min_behaviour > 0 else -math.inf

    @torch.no_grad()
    def values(self, batch: Batch) -> Tensor:
        """Of every action's state, at most 1, ``[B, T]``; 0 off the mask, NaN where no action is supported."""
        grid = torch.zeros(batch.mask.shape)
        self.policy.train(False)
        for rows in self.policy.microbatches(batch, range(len(batch))):
            with self.kept.active():
                packed, ours = self.policy.predictions(batch, rows)
            _, theirs = self.behaviour.predictions(batch, rows)
            best = largest_log_ratio(ours, theirs, floor=self.floor)
            values = torch.where(best == -math.inf, math.nan, best.clamp(max=0).exp())
            grid[packed.row, packed.column] = values.float().cpu()
        return grid

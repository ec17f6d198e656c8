"""Pairs of what was sampled: of each prompt's answers the best against the worst."""

import torch
from torch import Tensor

from klent.control.organ import Organ, StepRecord
from klent.streams.batch import Batch


class BestWorst(Organ):
    """Marks the best and the worst answer to each prompt as a pair, and leaves the others out of the loss.

    The first of equal ones is taken, and a prompt whose scored answers all have one reward gives no pair. Answers
    that are unscorable are in none.
    """

    name = "pairs"

    def __init__(self) -> None:
        self._tied = 0.0

    def after_rollout(self, batch: Batch) -> None:
        """Fill ``preferred``, and choose the tokens of the pairs under the name ``mask``."""
        rewards = batch.reward
        if rewards is None:
            raise ValueError("rollout.pairs compares rewards, and this step has none; set `reward`")
        best, worst, groups = best_and_worst(rewards, batch.group)
        paired, preferred = (
            torch.zeros(len(batch), dtype=torch.bool),
            torch.zeros(len(batch), dtype=torch.bool),
        )
        paired[torch.cat([best, worst])] = True
        preferred[best] = True
        batch.streams.preferred = preferred
        batch.streams.choices["mask"] = batch.mask & paired[:, None]
        self._tied = 1 - len(best) / groups

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """The share of prompts that gave no pair."""
        return {"preference/tied": self._tied}


def best_and_worst(rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor, int]:
    """Rows of the best and of the worst answer to each prompt whose rewards differ, and how many prompts there are.

    >>> rewards = torch.tensor([0.0, 1.0, 0.5, 1.0, 1.0, float("nan")])
    >>> best_and_worst(rewards, torch.tensor([0, 0, 0, 1, 1, 1]))
    (tensor([1]), tensor([0]), 2)
    """
    best, worst = [], []
    groups = group.unique().tolist()
    for number in groups:
        rows = ((group == number) & ~rewards.isnan()).nonzero()[:, 0]
        of_group = rewards[rows]
        if len(rows) and of_group.max() > of_group.min():
            best.append(int(rows[of_group.argmax()]))
            worst.append(int(rows[of_group.argmin()]))
    return torch.tensor(best, dtype=torch.long), torch.tensor(worst, dtype=torch.long), len(groups)

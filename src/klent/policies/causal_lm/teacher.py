"""A target that the policy is held to: at every action the divergence from it, over the whole vocabulary."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from klent.head.divergence import token_divergence
from klent.head.stats import Head
from klent.policies.causal_lm.model import CausalModel
from klent.policies.causal_lm.packing import Group, Pack, Packing, pack
from klent.streams.batch import Batch
from klent.streams.prompt import Prompt


class Computes(Protocol):
    """What a teacher asks of the policy that stands for it; a causal policy does."""

    packing: Packing

    @property
    def model(self) -> CausalModel:
        """What it is made of."""
        ...

    def states(self, rows: Pack) -> Tensor:
        """What predicts each of the ``N`` actions."""
        ...

    def head(self, states: Tensor) -> Head:
        """These hidden states with what turns them into distributions."""
        ...


class Teacher:
    """Gives the divergence per action; the target reads each completion behind its own prompt.

    Args:
        policy: of the target's model, with a fused head, laid out as it allows.
        encode: token ids of a prompt as the target reads it.
        divergence: ``reverse`` KL(policy ‖ target), or ``forward`` KL(target ‖ policy).
        skew: share of the first distribution that is mixed into the second; bounds the divergence.
        active: a context in which the model stands for the target.
    """

    def __init__(
        self,
        policy: Computes,
        encode: Callable[[Prompt], list[int]],
        *,
        divergence: Literal["reverse", "forward"],
        skew: float,
        active: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.policy = policy
        self.encode = encode
        self.kind = divergence
        self.skew = skew
        self.active = active

    def divergence(self, head: Head, batch: Batch, groups: Sequence[Group]) -> Tensor:
        """Nats for each of the ``N`` actions of these groups, ``[N]``; ``head`` is the policy's own."""
        with torch.no_grad(), self.active():
            model = self.policy.model
            was_training = model.training
            model.eval()
            rows = pack(self._behind_own_prompts(batch, groups), shared=self.policy.packing.shared)
            target = self.policy.head(self.policy.states(rows))
            model.train(was_training)
        # Rows that pad an embedding beyond the common tokens are nobody's.
        tokens = min(len(head.weight), len(target.weight))
        return token_divergence(
            head.first(tokens), target.first(tokens), divergence=self.kind, skew=self.skew
        )

    def _behind_own_prompts(self, batch: Batch, groups: Sequence[Group]) -> list[Group]:
        """The same tokens in the same order behind the target's prompts."""
        moved = [
            [replace(item, prompt_ids=self.encode(batch.episodes[item.index].prompt)) for item in group]
            for group in groups
        ]
        return moved if self.policy.packing.shared else [[item] for group in moved for item in group]

"""Another model beside the policy: at every action the divergence from it, over the whole vocabulary."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from klent.head.divergence import DivergenceKind, token_divergence
from klent.head.stats import Head
from klent.policies.causal_lm.model import CausalModel
from klent.policies.causal_lm.packing import Group, Pack, Packing, pack, segments
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
    """Gives the divergence per action from a target, a reference, or the policy as it was.

    Args:
        policy: of the other model, with a fused head, laid out as it allows.
        encode: token ids of a prompt as a target with a prompt of its own reads it; None = the policy's own.
        divergence: ``reverse`` KL(policy ‖ target), ``forward`` KL(target ‖ policy), ``jeffreys``, their sum, or
            ``total_variation``.
        skew: share of the first distribution that is mixed into the second; bounds the divergence.
        forward_above: the target's entropy, nats, above which an action has the forward KL besides.
        active: a context in which the model stands for the target.
        moved: whether the policy is another than the target now; where it is not, nothing is computed.
        trains: whether the divergence carries the policy's gradient.
    """

    def __init__(
        self,
        policy: Computes,
        encode: Callable[[Prompt], list[int]] | None = None,
        *,
        divergence: DivergenceKind = "reverse",
        skew: float = 0.0,
        forward_above: float | None = None,
        active: Callable[[], AbstractContextManager[object]] = nullcontext,
        moved: Callable[[], bool] = lambda: True,
        trains: bool = True,
    ) -> None:
        self.policy = policy
        self.encode = encode
        self.kind = divergence
        self.skew = skew
        self.forward_above = forward_above
        self.active = active
        self.moved = moved
        self.trains = trains

    @property
    def plain(self) -> bool:
        """Whether what it gives is KL(policy ‖ other), with no skew and nothing added, to be trained on."""
        return self.kind == "reverse" and not self.skew and self.forward_above is None and self.trains

    def head(self, batch: Batch, groups: Sequence[Group]) -> Head:
        """The other model's hidden states for each of the ``N`` actions of these groups, with its head."""
        with torch.no_grad(), self.active():
            model = self.policy.model
            was_training = model.training
            model.eval()
            rows = pack(self._behind_own_prompts(batch, groups), shared=self.policy.packing.shared)
            head = self.policy.head(self.policy.states(rows))
            model.train(was_training)
        return head

    def divergence(self, policy: Head, target: Head) -> Tensor:
        """For each of the ``N`` actions, ``[N]``, with the policy's gradient where it trains."""
        # Rows that pad an embedding beyond the common tokens are nobody's.
        tokens = min(len(policy.weight), len(target.weight))
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()):
            return token_divergence(
                policy.first(tokens),
                target.first(tokens),
                divergence=self.kind,
                skew=self.skew,
                forward_above=self.forward_above,
            )

    def _behind_own_prompts(self, batch: Batch, groups: Sequence[Group]) -> list[Group]:
        """The same tokens in the same order behind the target's prompts."""
        encode, moved = self.encode, list(groups)
        if encode is not None:
            moved = [
                [replace(item, prompt_ids=encode(batch.episodes[item.index].prompt)) for item in group]
                for group in groups
            ]
        packing = self.policy.packing
        if packing.joined:
            return moved
        if packing.shared:
            return [segment for group in moved for segment in segments(group)]
        return [[item] for group in moved for item in group]

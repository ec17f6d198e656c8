"""Distillation: at every sampled token the divergence of the policy from the target, over the vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from klent.config import Distill
from klent.errors import RunError
from klent.head.divergence import token_divergence
from klent.models.load import LoadedModel
from klent.policies.causal_lm.packing import Completion, Group, pack
from klent.policies.causal_lm.policy import Policy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.rollout.target import Target
from klent.streams.batch import Batch


class Distiller:
    """Gives the divergence as a loss per token; the target sees each completion behind its own prompt.

    Args:
        settings: the recipe's ``rollout.mixture.distill``.
        target: of the mixture.
        loaded: the policy.
        longest: the longest prompt and completion expected, tokens.

    Raises:
        RunError: a model whose last product is not a plain head, so that it could only be had as logits.
    """

    def __init__(self, settings: Distill, target: Target, loaded: LoadedModel, *, longest: int) -> None:
        self.settings = settings
        self.target = target
        self.tokenizer = loaded.tokenizer
        with target.active():
            self.policy = Policy(target.loaded.model, temperature=target.temperature)
            self.shared = takes_shared_prompt(self.policy, longest=longest)
        if not self.policy.fused:
            raise RunError(
                "rollout.mixture.distill: the target does more to its logits than a head; remove it"
            )

    def divergence(self, policy: Policy, states: Tensor, batch: Batch, groups: Sequence[Group]) -> Tensor:
        """Nats for each of the ``N`` tokens of these groups, ``[N]``; ``states`` are the policy's own."""
        with torch.no_grad(), self.target.active():
            model = self.target.loaded.model
            was_training = model.training
            model.eval()
            theirs = self.policy.states(pack(self._asked(batch, groups), shared=self.shared))
            model.train(was_training)
            head = self.policy.head(theirs)
        ours = policy.head(states)
        # Rows that fill an embedding up beyond the common words are nobody's tokens.
        words = min(len(ours.weight), len(head.weight))
        kind, skew = self.settings.divergence, self.settings.skew
        return token_divergence(ours.first(words), head.first(words), divergence=kind, skew=skew)

    def _asked(self, batch: Batch, groups: Sequence[Group]) -> list[Group]:
        """The same tokens in the same order behind the target's prompts."""
        answers = [
            [
                Completion(
                    item.index,
                    self.target.encode(batch.rollouts[item.index].prompt, self.tokenizer),
                    item.tokens,
                )
                for item in group
            ]
            for group in groups
        ]
        return answers if self.shared else [[item] for group in answers for item in group]

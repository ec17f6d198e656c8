"""The objective of a recipe: functions of klent.objectives, bound to token streams by their arguments' names.

The trainer does not know which algorithm it runs. A term asks for what it needs by the names of its
parameters (``logp``, ``advantage``, ``logp_ref``, ...), and what no term asks for is not computed.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from klent.objectives import TokenLoss, reward_to_go
from klent.streams.batch import Batch
from klent.training.selection import Select, Selection
from klent.training.term import Term


class Objective:
    """A sum of surrogate terms, an advantage estimator, and rewards paid token by token.

    Args:
        loss: term name -> hyper-parameters; their losses add up.
        advantage: estimator name -> hyper-parameters (one), or None for the reward itself.
        token_reward: term name -> hyper-parameters; each returns a reward a token, and its sum from a token
            to the
            end of the completion joins that token's advantage, which keeps the gradient exact for the
            sequence.
        select: stream name -> {selector: hyper-parameters}; what each chooses becomes a stream.
    """

    def __init__(
        self,
        loss: Mapping[str, Mapping[str, Any] | None],
        advantage: Mapping[str, Mapping[str, Any] | None] | None,
        token_reward: Mapping[str, Mapping[str, Any] | None] | None,
        select: Select | None = None,
    ) -> None:
        self.terms = [Term.named(name, settings) for name, settings in loss.items()]
        self.estimator = next((Term.named(*item) for item in (advantage or {}).items()), None)
        self.token_rewards = [Term.named(name, settings) for name, settings in (token_reward or {}).items()]
        self.selection = Selection(select)

    def named(self, function: str) -> list[Term]:
        """The terms and selectors made of a function of this name."""
        terms = [*self.terms, *self.selection.selectors.values()]
        return [term for term in terms if term.function.__name__ == function]

    def takes(self, stream: str) -> bool:
        """Whether any part of the objective asks for this stream."""
        terms = [*self.terms, *self.token_rewards, *self.selection.selectors.values()]
        return any(stream in term.streams for term in terms)

    def estimate_advantage(self, batch: Batch) -> None:
        """Fill ``batch.streams["advantage"]``, ``[B, T]``, from the rewards; 0 where unscorable."""
        if not self.takes("advantage"):
            return
        if self.estimator is None:
            value = batch.reward.nan_to_num(nan=0.0)
        else:
            value = self.estimator({"rewards": batch.reward, "group": batch.group})
        advantage = torch.where(batch.mask, value[:, None], 0.0)
        scorable = ~batch.reward.isnan()[:, None]
        for term in self.token_rewards:
            streams = {**batch.streams, "mask": batch.mask, "logp": batch.streams["logp_old"]}
            advantage = advantage + torch.where(scorable, reward_to_go(term(streams), batch.mask), 0.0)
        batch.streams["advantage"] = advantage

    def token_loss(self, streams: Mapping[str, Tensor]) -> TokenLoss:
        """The terms' losses added up, ``[B, T]``, times a ``weight`` that there is; metrics together."""
        if not self.terms:  # nothing but distillation, which does not go through log-probabilities
            return TokenLoss(torch.zeros_like(streams["logp"]), {})
        parts: list[TokenLoss] = [term(streams) for term in self.terms]
        total = torch.stack([part.loss for part in parts]).sum(dim=0) if len(parts) > 1 else parts[0].loss
        if "weight" in streams:
            total = total * streams["weight"]
        metrics = {name: value for part in parts for name, value in part.metrics.items()}
        return TokenLoss(total, metrics)

    def active_rows(self, batch: Batch) -> list[int]:
        """Completions that have a coefficient, whatever the policy's log-probabilities turn out to be.

        The loss is asked for its own coefficients at three points, a little below, at and a little above the
        sampler's log-probabilities: a completion whose coefficients vanish at all three gives no gradient, so
        its forward pass can be left out. No list of algorithms is needed to know that a group of equal
        rewards is idle.
        """
        base = batch.streams.get("logp_old", batch.own["logp"]).nan_to_num(nan=-1.0)
        spread = batch.streams.get("entropy_old", batch.own["entropy"]).nan_to_num(nan=1.0)
        alive = torch.zeros(len(batch.mask), dtype=torch.bool)
        for shift in (-0.25, 0.0, 0.25):
            logp = (base + shift).requires_grad_()
            entropy = spread.clone().requires_grad_()
            streams = {
                "logp_old": base,
                "entropy_old": spread,
                **batch.streams,
                "mask": batch.trained,
                "logp": logp,
                "entropy": entropy,
            }
            loss = self.token_loss(streams).loss.sum()
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(loss, [logp, entropy], allow_unused=True)
            for gradient in gradients:
                if gradient is not None:
                    alive |= ((gradient != 0) & batch.trained).any(dim=1)
        return alive.nonzero()[:, 0].tolist()

"""klent's losses and advantages under names that verl looks up.

To import this module registers ``klent/METHOD`` for every method of klent that verl has the numbers for, as a policy
loss and as an advantage estimator; :func:`register` adds an objective of your own. verl's workers import it where the
environment says ``VERL_USE_EXTERNAL_MODULES=klent.integrations.verl``::

    actor_rollout_ref.actor.policy_loss.loss_mode=klent/cispo algorithm.adv_estimator=klent/rloo
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos

from klent.config import recipes_folder
from klent.errors import ConfigError
from klent.integrations.sections import Part, objective_of
from klent.streams.batch import Batch
from klent.streams.registry import Streams

GIVEN = frozenset({"logp", "logp_old", "advantage", "mask", "importance_weight"})
"""The streams that verl hands to a policy loss."""


class PolicyLoss:
    """A policy loss as verl calls it: klent's loss per token, averaged as verl's ``loss_agg_mode`` says.

    Args:
        part: the objective; its ``reduce`` is verl's.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(
        self,
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch, and its metrics under ``klent/``."""
        mask = response_mask.bool()
        streams = Streams(
            logp=log_prob,
            logp_old=old_log_prob,
            advantage=advantages,
            mask=mask,
            importance_weight=rollout_is_weights,
        )
        outcome = self.part.objective.token_loss(streams)
        sizes = {} if config is None else config.global_batch_info
        loss: Tensor = core_algos.agg_loss(
            loss_mat=outcome.loss, loss_mask=mask, loss_agg_mode=loss_agg_mode, **sizes
        )
        means = {name: float(total / count.clamp(min=1)) for name, (total, count) in outcome.metrics.items()}
        return loss, {f"klent/{name}": mean for name, mean in means.items()}


class Advantage:
    """An advantage estimator as verl calls it, over the responses that share an ``index``.

    Args:
        part: the objective whose ``advantage`` is meant.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(
        self, token_level_rewards: Tensor, response_mask: Tensor, index: np.ndarray, **others: Any
    ) -> tuple[Tensor, Tensor]:
        """Advantages, twice: verl's second result is what a critic would learn."""
        mask = response_mask.bool()
        _, numbers = np.unique(np.asarray(index), return_inverse=True)
        group = torch.as_tensor(numbers, device=mask.device)
        streams = Streams(mask=mask, rewards=token_level_rewards.sum(dim=-1), group=group)
        batch = Batch([], group, torch.arange(len(mask)), mask, streams)
        self.part.objective.estimate_advantage(batch)
        advantage = batch.streams.advantage
        assert advantage is not None
        return advantage, advantage


def register(name: str, objective: str | Mapping[str, Any], *, group_size: int = 8) -> None:
    """Give verl an objective of klent's under a name.

    Args:
        name: that ``policy_loss.loss_mode`` and ``algorithm.adv_estimator`` will say.
        objective: a method, or the sections ``method``, ``loss`` and ``advantage`` of a recipe.
        group_size: completions per prompt, for checks of the recipe alone.

    Raises:
        ConfigError: the objective has a fault, or needs what verl does not give.
    """
    part = objective_of(objective, group_size=group_size, max_tokens=1, optimizer_steps=1, host="verl")
    terms = part.objective
    if others := sorted({stream for term in terms.terms for stream in term.required} - GIVEN):
        raise ConfigError(
            f"objective reads {', '.join(others)}, which verl does not hand to a policy loss. Entropy and KL are "
            "terms of verl's own (entropy_coeff, use_kl_loss)"
        )
    if terms.token_rewards or terms.selection.functions:
        raise ConfigError(
            "objective has token_reward, select or weigh, which take whole steps, and verl calls a policy loss for "
            "each micro-batch. Use `klent train` for them"
        )
    core_algos.POLICY_LOSS_REGISTRY[name] = PolicyLoss(part)
    if terms.estimators:
        core_algos.ADV_ESTIMATOR_REGISTRY[name] = Advantage(part)


def register_methods() -> list[str]:
    """Register every shipped method that verl has the numbers for; their names."""
    registered = []
    for file in sorted((recipes_folder() / "methods").glob("*.yaml")):
        try:
            register(f"klent/{file.stem}", file.stem)
        except ConfigError:
            continue
        registered.append(f"klent/{file.stem}")
    return registered


METHODS = register_methods()

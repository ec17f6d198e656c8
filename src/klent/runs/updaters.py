"""The updater that a recipe describes: optimizer, learning rate, and how the loss is averaged."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import nn

from klent.config import Recipe
from klent.control.schedule import learning_rate
from klent.kit.world import World
from klent.policies.policy import Policy
from klent.runs.objective import asked_streams
from klent.training.masters import MasterWeights
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.released import ReleasedPositions
from klent.training.update import Updater


def build_updater(
    recipe: Recipe, policy: Policy, objective: Objective, world: World, *, filler: int
) -> Updater:
    """What turns a batch into optimizer steps.

    Args:
        recipe: what is minimised, and how.
        policy: what is trained.
        objective: of the recipe.
        world: the ranks that share the run.
        filler: token id after the end, for ``update.released_code``.
    """
    update = recipe.update
    per_step = update.epochs * update.minibatches
    masters = MasterWeights(policy.trainable(), getattr(torch, recipe.precision.weights))
    optimizer = _adamw(recipe, masters.named)
    masters.follow(optimizer)
    updater = (ReleasedPositions if update.released_code else Updater)(
        policy,
        optimizer,
        objective,
        learning_rate=partial(
            learning_rate,
            peak=recipe.optimizer.lr,
            warmup=recipe.optimizer.warmup_steps * per_step,
            total=recipe.steps * per_step,
            schedule=recipe.optimizer.schedule,
        ),
        reduction=Reduction(
            over=recipe.reduce.over,
            denominator=recipe.reduce.denominator or recipe.rollout.max_tokens,
            count=recipe.reduce.count,
        ),
        epochs=update.epochs,
        minibatches=update.minibatches,
        max_grad_norm=recipe.optimizer.max_grad_norm or float("inf"),
        asked=asked_streams(recipe),
        ahead=recipe.rollout.staleness > 0,
        world=world,
        moved=masters.named,
        sharded=is_sharded(recipe, world),
    )
    if isinstance(updater, ReleasedPositions):
        updater.filler = filler
    return updater


def is_sharded(recipe: Recipe, world: World) -> bool:
    """Whether each of these ranks holds a part of every weight."""
    return recipe.distributed == "fsdp" and world.size > 1


def _adamw(recipe: Recipe, trainable: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW whose weight decay leaves vectors (norms, biases) alone; a critic and a score head have own rates."""
    options, rates = recipe.optimizer, _own_rates(recipe)
    groups = [
        {"params": params, "weight_decay": decay, "lr_scale": rates.get(part, options.lr) / options.lr}
        for part in ("", *rates)
        for decay, matrices in ((options.weight_decay, True), (0.0, False))
        if (
            params := [
                p
                for name, p in trainable.items()
                if next((own for own in rates if name.startswith(own)), "") == part
                and (p.ndim >= 2) == matrices
            ]
        )
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=True)


def _own_rates(recipe: Recipe) -> dict[str, float]:
    """Learning rates of parameters with another one than `optimizer.lr`, by what their names begin with."""
    lr, critic = recipe.optimizer.lr, recipe.critic
    return {**recipe.policy.rates(lr), **({} if critic is None else {"critic.": critic.lr or lr})}

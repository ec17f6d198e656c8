"""A new task beside an old one, with shared weights: what learning the first does to the second."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from klent.claims.claim import SEEDS
from klent.claims.worlds.simplex import draw, random_logits

OLD, NEW, FEATURES, ACTIONS, RIGHT = 48, 8, 32, 16, 4
SCORE = 0.85  # of the new task, at which ways to learn are compared
_RATE, _STEPS = 0.2, 20_000

Objective = Callable[[Tensor], Tensor]
"""Of the log-probabilities on the new task, ``[R, NEW, ACTIONS]``: what is maximised, ``[R]``."""


class World(NamedTuple):
    """R worlds: contexts, what is right on each task, and the weights before."""

    features: Tensor  # [R, OLD + NEW, F]: the old contexts first
    old: Tensor  # the right action of each old context, [R, OLD]
    right: Tensor  # the right actions of each new context, [R, NEW, A] bool
    start: Tensor  # [R, F, A]


class Kept(NamedTuple):
    """A policy that has just reached the score, ``[R]`` each."""

    lost: Tensor  # reward on the old task, less than before
    kl_old: Tensor  # KL(before ‖ after) on the old task, nats
    forward: Tensor  # KL(before ‖ after) on the new task
    reverse: Tensor  # KL(after ‖ before) on the new task
    distance: Tensor  # ‖W - W₀‖ / ‖W₀‖


def worlds() -> World:
    """One per seed. The old task is mostly solved; four of 16 actions are right in each new context."""
    parts = []
    for seed in SEEDS:
        features = random_logits(4 * seed, OLD + NEW, FEATURES) / FEATURES**0.5
        old = (features[:OLD] @ random_logits(4 * seed + 1, FEATURES, ACTIONS)).argmax(-1)
        order = random_logits(4 * seed + 2, NEW, ACTIONS).argsort(-1)
        right = torch.zeros(NEW, ACTIONS, dtype=torch.bool).scatter(1, order[:, :RIGHT], True)
        weights = random_logits(4 * seed + 3, FEATURES, ACTIONS, scale=0.3)
        for _ in range(20):  # plain supervised learning of the old task
            miss = torch.eye(ACTIONS, dtype=weights.dtype)[old] - (features[:OLD] @ weights).softmax(-1)
            weights = weights + 0.5 * features[:OLD].T @ miss
        parts.append((features, old, right, weights))
    return World(*(torch.stack(part) for part in zip(*parts, strict=True)))


def policy(world: World, weights: Tensor) -> Tensor:
    """Log-probabilities in every context, ``[R, OLD + NEW, A]``."""
    return (world.features @ weights).log_softmax(-1)


def score(world: World, logp: Tensor) -> Tensor:
    """Reward on the new task, ``[R]``."""
    return (logp[:, OLD:].exp() * world.right).sum(-1).mean(-1)


def imitate(target: Tensor) -> Objective:
    """Maximum likelihood of labels with these probabilities."""
    return lambda logp: (target * logp).sum(-1).mean(-1)


def ways(world: World) -> dict[str, Objective]:
    """Ways to learn the new task, by name."""
    right = world.right.to(torch.float64)
    evenly = right / right.sum(-1, keepdim=True)
    before = policy(world, world.start)[:, OLD:].exp() * right
    one = draw(evenly, torch.Generator().manual_seed(0))
    return {
        "policy gradient": lambda logp: (logp.exp() * right).sum(-1).mean(-1),
        "imitation of one right answer": imitate(torch.nn.functional.one_hot(one, ACTIONS).to(right.dtype)),
        "imitation of all right answers evenly": imitate(evenly),
        "imitation of its first right answers": imitate(before / before.sum(-1, keepdim=True)),
        "imitation of its right answers, drawn anew": lambda logp: (
            (logp.exp() * right).sum(-1).log().mean(-1)
        ),
    }


def kept(world: World, before: Tensor, after: Tensor, weights: Tensor) -> Kept:
    """What is left of the old task, and how far the policy went."""

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1).mean(-1)

    def solved(logp: Tensor) -> Tensor:
        return logp[:, :OLD].gather(-1, world.old.unsqueeze(-1)).exp().mean((1, 2))

    return Kept(
        lost=solved(before) - solved(after),
        kl_old=kl(before[:, :OLD], after[:, :OLD]),
        forward=kl(before[:, OLD:], after[:, OLD:]),
        reverse=kl(after[:, OLD:], before[:, OLD:]),
        distance=(weights - world.start).flatten(1).norm(dim=1) / world.start.flatten(1).norm(dim=1),
    )


def learn(world: World, objective: Objective, score_at: float = SCORE) -> Kept:
    """Small exact gradient steps on the new task alone, until each world has just reached the score.

    Raises:
        RuntimeError: a world does not reach it.
    """
    weights = world.start.clone()
    before = policy(world, weights)
    done = torch.zeros(len(weights), dtype=torch.bool)
    found = kept(world, before, before, weights)
    for _ in range(_STEPS):
        leaf = weights.requires_grad_()
        logp = policy(world, leaf)
        (slope,) = torch.autograd.grad(objective(logp[:, OLD:]).sum(), leaf)
        step = torch.where(done[:, None, None], 0.0, _RATE * slope)
        weights = (weights + step).detach()
        after = policy(world, weights)
        new = ~done & (score(world, after) >= score_at)
        if new.any():
            found = Kept(
                *(
                    torch.where(new, now, was)
                    for now, was in zip(kept(world, before, after, weights), found, strict=True)
                )
            )
            done = done | new
        if done.all():
            return found
    raise RuntimeError(f"{int((~done).sum())} worlds do not reach a score of {score_at} in {_STEPS} steps")

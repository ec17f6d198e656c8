"""A contextual bandit whose contexts share their weights, so that one context's update moves the others."""

from typing import NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.worlds.simplex import draw_groups, random_logits

CONTEXTS, FEATURES, ACTIONS, GROUP = 32, 12, 20, 8


class World(NamedTuple):
    """For each of R runs: features, the expected reward of each action, and the weights a policy starts from."""

    features: Tensor  # [R, C, F]
    reward: Tensor  # [R, C, A], in [0, 1]
    start: Tensor  # [R, F, A]

    def repeated(self, times: int) -> "World":
        """Each run ``times`` times over."""
        return World(*(part.repeat_interleave(times, 0) for part in self))


class Batch(NamedTuple):
    """A group of actions for each context, and the policy that they were sampled from."""

    context: Tensor  # [1, C·GROUP]
    action: Tensor  # [R, C·GROUP]
    logp: Tensor  # of all actions, [R, C, A]


def worlds(seeds: range) -> World:
    """One run per seed; rewards are a function of the features, the start is not."""
    parts = []
    for seed in seeds:
        features = random_logits(3 * seed, CONTEXTS, FEATURES) / FEATURES**0.5
        reward = (3 * features @ random_logits(3 * seed + 1, FEATURES, ACTIONS)).sigmoid()
        parts.append((features, reward, random_logits(3 * seed + 2, FEATURES, ACTIONS)))
    return World(*(torch.stack(part) for part in zip(*parts, strict=True)))


def policy(world: World, weights: Tensor) -> Tensor:
    """Log-probabilities of all actions, ``[R, C, A]``."""
    return (world.features @ weights).log_softmax(-1)


def sample(logp: Tensor, generator: torch.Generator, arms: int = 1) -> Batch:
    """A group of actions for each context; the runs of several arms, arm by arm, are drawn with the same numbers."""
    context = torch.arange(CONTEXTS).repeat_interleave(GROUP).unsqueeze(0)
    return Batch(context, draw_groups(logp.exp(), GROUP, generator, arms).flatten(1), logp)


def taken(values: Tensor, batch: Batch) -> Tensor:
    """The numbers of the sampled actions, ``[R, C·GROUP]``, out of those of all actions, ``[R, C, A]``."""
    run = torch.arange(len(values)).unsqueeze(1)
    return values[run, batch.context, batch.action]


def groups(runs: int) -> Tensor:
    """A number for each context of each run, ``[R·C·GROUP]``."""
    return torch.arange(runs * CONTEXTS).repeat_interleave(GROUP)


def entropy(logp: Tensor) -> Tensor:
    """Nats, mean over contexts, ``[R]``."""
    return O.categorical_entropy(logp).mean(-1)


def separate(seeds: range) -> World:
    """One run per seed where no weights are shared and the best action is unlikely at first; see ``bandit``."""
    parts = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(CONTEXTS, ACTIONS, generator=generator, dtype=torch.float64)
        reward = 0.6 * torch.rand(CONTEXTS, ACTIONS, generator=generator, dtype=torch.float64)
        start[:, 0], reward[:, 0] = -2.0, 1.0
        parts.append((torch.eye(CONTEXTS, dtype=start.dtype), reward, start))
    return World(*(torch.stack(part) for part in zip(*parts, strict=True)))

"""A small soft-optimal decision problem, solved exactly, and behaviour policies of known quality in it."""

from dataclasses import dataclass

import torch
from torch import Tensor

STATES, ACTIONS, GAMMA, ALPHA = 6, 4, 0.7, 1.0


@dataclass(frozen=True)
class World:
    """Transitions ``[S, A, S]``, the soft-optimal policy's log-probabilities ``[S, A]`` and value ``[S]``."""

    transition: Tensor
    reward: Tensor
    logp_best: Tensor
    value_best: Tensor


def solve(generator: torch.Generator) -> World:
    """A random world and its optimum under reward plus ``ALPHA`` times entropy."""
    transition = torch.rand(STATES, ACTIONS, STATES, generator=generator, dtype=torch.float64).pow(3)
    transition = transition / transition.sum(-1, keepdim=True)
    reward = torch.randn(STATES, ACTIONS, generator=generator, dtype=torch.float64)
    value = torch.zeros(STATES, dtype=torch.float64)
    for _ in range(200):
        value = ALPHA * ((reward + GAMMA * transition @ value) / ALPHA).logsumexp(-1)
    q = reward + GAMMA * transition @ value
    return World(transition, reward, (q - value.unsqueeze(1)) / ALPHA, value)


def evaluate(world: World, logp: Tensor) -> tuple[Tensor, Tensor]:
    """Soft value ``[S]`` and ``Q`` ``[S, A]`` of a policy."""
    p = logp.exp()
    entropy_reward = (p * (world.reward - ALPHA * logp)).sum(-1)
    value = discounted(world, p, entropy_reward)
    return value, world.reward + GAMMA * world.transition @ value


def discounted(world: World, p: Tensor, per_state: Tensor) -> Tensor:
    """Expected discounted sum, starting from each state, of one number per state, ``[S]``."""
    moves = torch.einsum("sa,sat->st", p, world.transition)
    values: Tensor = torch.linalg.solve(torch.eye(STATES, dtype=p.dtype) - GAMMA * moves, per_state)
    return values

"""Q-SFT's target and policies (arXiv:2411.05193), and a small decision problem solved by value iteration."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def target(reward: float, value: Array, behaviour: Array, gamma: float, least: float) -> float:
    """r + γ max p/π over the actions that the data has, held to [0, 1]; from probabilities."""
    ratios = [p / b for p, b in zip(value, behaviour, strict=True) if b > 0 and b >= least]
    return min(max(reward + gamma * max([*(min(r, 1.0) for r in ratios), 0.0]), 0.0), 1.0)


def policy(value: Array, behaviour: Array, beta: float, form: str) -> Array:
    """π·exp(βp), or with p/π in the exponent; from probabilities."""
    tilt = [p if form == "probability" else min(p / b, 1.0) for p, b in zip(value, behaviour, strict=True)]
    weights = np.array([b * math.exp(beta * t) for b, t in zip(behaviour, tilt, strict=True)])
    return weights / weights.sum()


def ilql(
    q: Array,
    second: Array,
    logp: Array,
    v: Array,
    weight: Array,
    target: Array,
    second_target: Array,
    mask: Array,
    tau: float,
    conservative: float,
) -> Array:
    """Implicit Q-learning's loss (arXiv:2206.11871), token by token; conservative on the first Q alone."""
    loss = np.zeros(q.shape)
    for i, t in zip(*np.nonzero(mask), strict=True):
        u = (target if target[i, t] < second_target[i, t] else second_target)[i, t] - v[i, t]
        side = tau if u > 0 else 1 - tau
        errors = (q[i, t] - weight[i, t]) ** 2 + (second[i, t] - weight[i, t]) ** 2
        loss[i, t] = errors + side * u * u - conservative * logp[i, t]
    return loss


class Problem:
    """Random states, actions, rewards and transitions, with returns in [0, 1] and a policy of the data."""

    def __init__(self, seed: int, states: int = 6, actions: int = 4, gamma: float = 0.7) -> None:
        rng = np.random.default_rng(seed)
        self.gamma = gamma
        self.reward = (1 - gamma) * rng.random((states, actions)) ** 3
        self.next = rng.dirichlet(np.full(states, 0.3), (states, actions))
        self.behaviour = rng.dirichlet(np.ones(actions), states)

    def optimal(self) -> Array:
        """Q*, by value iteration."""
        q = np.zeros(self.reward.shape)
        for _ in range(200):
            q = self.reward + self.gamma * self.next @ q.max(axis=1)
        return q

    def returns(self, policy: Array) -> float:
        """Mean value of a policy over the states, by a linear solve."""
        transition = np.einsum("sa,sat->st", policy, self.next)
        reward = (policy * self.reward).sum(axis=1)
        return float(np.linalg.solve(np.eye(len(reward)) - self.gamma * transition, reward).mean())

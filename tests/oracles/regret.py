"""Preference by regret (arXiv:2505.06273), as sums, and a small problem with its soft values."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def score(logp: list[float], kl: list[float], alpha: float, gamma: float, label: str) -> float:
    """α Σ γᵗ (log π(aₜ) - what is to come), the double sum written out."""
    total = 0.0
    for t in range(len(logp)):
        if label == "expected":
            future = kl[t]
        elif label == "realised":
            future = sum(gamma ** (m - t) * kl[m] for m in range(t + 1, len(logp)))
        elif label == "pseudo":
            future = sum(gamma ** (m - t) * -logp[m] for m in range(t + 1, len(logp)))
        else:  # no label: CPL
            future = 0.0
        total += gamma**t * (logp[t] - future)
    return alpha * total


def loss(chosen: float, rejected: float, weight: float) -> float:
    """Minus the log of the chance that the first is preferred."""
    return -math.log(1 / (1 + math.exp(weight * rejected - chosen)))


class SoftProblem:
    """A random problem, its optimal policy under an entropy bonus, and another policy."""

    def __init__(
        self, seed: int, states: int = 4, actions: int = 3, gamma: float = 0.8, alpha: float = 0.5
    ) -> None:
        rng = np.random.default_rng(seed)
        self.gamma, self.alpha = gamma, alpha
        self.reward = rng.normal(size=(states, actions))
        self.next = rng.dirichlet(np.ones(states), (states, actions))
        self.behaviour = rng.dirichlet(np.ones(actions), states)
        value = np.zeros(states)
        for _ in range(300):
            q = self.reward + gamma * self.next @ value
            value = alpha * np.log(np.exp(q / alpha).sum(axis=1))
        self.value = value
        self.optimal = np.exp((q - value[:, None]) / alpha)

    def behaviour_q(self) -> Array:
        """Q of the behaviour policy, with its own entropy bonus from the next state on."""
        states = len(self.reward)
        entropy = -(self.behaviour * np.log(self.behaviour)).sum(axis=1)
        earned = (self.behaviour * self.reward).sum(axis=1) + self.alpha * entropy
        moves = np.einsum("sa,sat->st", self.behaviour, self.next)
        value = np.linalg.solve(np.eye(states) - self.gamma * moves, earned)
        return self.reward + self.gamma * self.next @ value

    def future_kl(self) -> Array:
        """F: the mean discounted KL(behaviour ‖ optimal) at the states after each state and action."""
        states = len(self.reward)
        kl = (self.behaviour * np.log(self.behaviour / self.optimal)).sum(axis=1)
        moves = np.einsum("sa,sat->st", self.behaviour, self.next)
        onwards = np.linalg.solve(np.eye(states) - self.gamma * moves, kl)
        return self.gamma * self.next @ onwards

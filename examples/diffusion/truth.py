"""What a denoiser in one dimension makes, without sampling: its chain of Gaussian steps on a grid, in NumPy.

p(x_0)      by multiplying the steps' transition matrices
KL of paths sum over steps of E[(mu - mu_ref)^2 / (2 s^2)] under the policy's own states
the truth   p_ref(x_0) exp(r(x_0) / beta) / Z, whose value is beta log Z
"""

from dataclasses import dataclass

import numpy as np
import torch

GRID = np.linspace(-5.0, 5.0, 801)
STEP = GRID[1] - GRID[0]


@dataclass
class Chain:
    """Means of every step at every point of the grid ``[L, G]``, and the standard deviation of every step ``[L]``."""

    mean: np.ndarray
    std: np.ndarray


def chain_of(actor: torch.nn.Module) -> Chain:
    """Asks an actor for the distribution of each step at each point."""
    x = torch.tensor(GRID, dtype=torch.float32)[:, None]
    with torch.no_grad():
        laws = [actor(x, torch.full((len(GRID),), place)) for place in range(len(actor.std))]
    means = np.stack([law.mean[:, 0].double().numpy() for law in laws])
    return Chain(means, np.array([float(law.std[0, 0]) for law in laws]))


def transition(mean: np.ndarray, std: float) -> np.ndarray:
    """From each point to each point, rows that sum to 1, ``[G, G]``."""
    density = np.exp(-((GRID[None] - mean[:, None]) ** 2) / (2 * std**2))
    return density / density.sum(axis=1, keepdims=True)


def follow(chain: Chain, reference: Chain) -> tuple[np.ndarray, float]:
    """Probabilities of what the chain ends in ``[G]``, and KL(chain || reference) between paths, nats."""
    here = np.exp(-(GRID**2) / 2)
    here /= here.sum()
    path_kl = 0.0
    for mean, mean_ref, std in zip(chain.mean, reference.mean, chain.std, strict=True):
        path_kl += float(here @ ((mean - mean_ref) ** 2)) / (2 * std**2)
        here = here @ transition(mean, std)
    return here, path_kl


def tilted(reference: Chain, reward: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    """The reference tilted by exp(reward / beta), and beta log Z: the best E[r] - beta KL that there is."""
    end, _ = follow(reference, reference)
    weight = end * np.exp(reward / beta)
    return weight / weight.sum(), beta * float(np.log(weight.sum()))


def best_of_gaussians(reference: Chain, reward: np.ndarray, beta: float | np.ndarray) -> Chain:
    """The best chain whose steps keep their standard deviation, by dynamic programming over the means.

    V_i(x) = max_m  E[V_(i+1)(x')] - beta (m - mu_ref)^2 / (2 s^2),   x' of N(m, s^2)

    ``beta`` may differ from step to step, ``[L]``.
    """
    value, means = reward, []
    prices = np.broadcast_to(beta, len(reference.std))
    for mean_ref, std, price in zip(reference.mean[::-1], reference.std[::-1], prices[::-1], strict=True):
        after = transition(GRID, std) @ value  # of every candidate mean
        gain = after[None] - price * (GRID[None] - mean_ref[:, None]) ** 2 / (2 * std**2)
        means.append(GRID[gain.argmax(axis=1)])
        value = gain.max(axis=1)
    return Chain(np.stack(means[::-1]), reference.std)


def beside_data(start: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """What maximises E[r] - beta KL(start || p): p = start beta / (c - r), by bisection for c."""
    low, high = float(reward.max()) + 1e-12, float(reward.max()) + beta
    for _ in range(100):
        c = (low + high) / 2
        low, high = (c, high) if (start * beta / (c - reward)).sum() > 1 else (low, c)
    p: np.ndarray = start * beta / (c - reward)
    return p / p.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) of probabilities on the grid, nats."""
    inside = p > 1e-300
    return float(np.sum(p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-300))))

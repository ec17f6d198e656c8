"""truth.py in two dimensions: what a denoiser of points in the plane makes, without sampling, in NumPy.

The coordinates of a step are independent given its state: a step from all points to all points is a product of two
matrices, p'(y) = sum over x of p(x) N(y_1; mu_1(x), s^2) N(y_2; mu_2(x), s^2). Points are rows of ``GRID``.
"""

import numpy as np
import torch
from truth import Chain, kl

AXIS = np.linspace(-4.5, 4.5, 109)
EDGE = len(AXIS)
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), axis=-1).reshape(-1, 2)
ROWS = 400  # of a block, so that no array is of all pairs of points

__all__ = ["GRID", "best_of_gaussians", "chain_of", "follow", "kl", "tilted"]


def chain_of(actor: torch.nn.Module) -> Chain:
    """Asks an actor for the distribution of each step at each point: means ``[L, G, 2]``."""
    x = torch.tensor(GRID, dtype=torch.float32)
    with torch.no_grad():
        laws = [actor(x, torch.full((len(GRID),), place)) for place in range(len(actor.std))]
    return Chain(
        np.stack([law.mean.double().numpy() for law in laws]),
        np.array([float(law.std[0, 0]) for law in laws]),
    )


def along(mean: np.ndarray, std: float) -> np.ndarray:
    """One coordinate's probabilities on the axis, from each of some means, rows that sum to 1, ``[N, edge]``."""
    density = np.exp(-((AXIS[None] - mean[:, None]) ** 2) / (2 * std**2))
    return density / density.sum(axis=1, keepdims=True)


def follow(chain: Chain, reference: Chain) -> tuple[np.ndarray, float]:
    """Probabilities of what the chain ends in ``[G]``, and KL(chain || reference) between paths, nats."""
    here = np.exp(-(GRID**2).sum(1) / 2)
    here /= here.sum()
    path_kl = 0.0
    for mean, mean_ref, std in zip(chain.mean, reference.mean, chain.std, strict=True):
        path_kl += float(here @ ((mean - mean_ref) ** 2).sum(1)) / (2 * std**2)
        here = ((along(mean[:, 0], std) * here[:, None]).T @ along(mean[:, 1], std)).ravel()
    return here, path_kl


def tilted(reference: Chain, reward: np.ndarray, beta: float) -> tuple[np.ndarray, float]:
    """The reference tilted by exp(reward / beta), and beta log Z: the best E[r] - beta KL that there is."""
    end, _ = follow(reference, reference)
    weight = end * np.exp(reward / beta)
    return weight / weight.sum(), beta * float(np.log(weight.sum()))


def best_of_gaussians(reference: Chain, reward: np.ndarray, beta: float) -> Chain:
    """As in truth.py; the best mean is refined between points by a parabola along each axis."""
    value, means = reward, []
    for mean_ref, std in zip(reference.mean[::-1], reference.std[::-1], strict=True):
        onward = along(AXIS, std)
        after = onward @ value.reshape(EDGE, EDGE) @ onward.T  # of every candidate mean
        cost = beta / (2 * std**2)
        blocks = [refined(after, mean_ref[i : i + ROWS], cost) for i in range(0, len(GRID), ROWS)]
        means.append(np.concatenate([mean for mean, _ in blocks]))
        value = np.concatenate([gain for _, gain in blocks])
    return Chain(np.stack(means[::-1]), reference.std)


def refined(after: np.ndarray, mean_ref: np.ndarray, cost: float) -> tuple[np.ndarray, np.ndarray]:
    """For some points the mean ``[N, 2]`` that maximises ``after - cost |m - mean_ref|^2``, and that maximum."""
    price = [cost * (AXIS[None] - mean_ref[:, k : k + 1]) ** 2 for k in (0, 1)]
    gain = after[None] - price[0][:, :, None] - price[1][:, None, :]
    flat = gain.reshape(len(mean_ref), -1).argmax(axis=1)
    place = np.stack([flat // EDGE, flat % EDGE], axis=1).clip(1, EDGE - 2)
    row = np.arange(len(place))
    middle = gain[row, place[:, 0], place[:, 1]]
    mean, best = np.empty_like(mean_ref), middle.copy()
    for k, (one, other) in enumerate(((1, 0), (0, 1))):
        below = gain[row, place[:, 0] - one, place[:, 1] - other]
        above = gain[row, place[:, 0] + one, place[:, 1] + other]
        bend = np.minimum(below + above - 2 * middle, -1e-12)
        shift = ((below - above) / (2 * bend)).clip(-0.5, 0.5)
        mean[:, k] = AXIS[place[:, k]] + shift * (AXIS[1] - AXIS[0])
        best += shift * (above - below) / 2 + shift**2 * bend / 2
    return mean, best

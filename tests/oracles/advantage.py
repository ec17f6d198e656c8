"""Advantages, one completion or one token at a time."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def group_advantage(rewards: list[float], group: list[int], scale: str) -> list[float]:
    """GRPO's advantage (arXiv:2402.03300), with the sample deviation; Dr. GRPO's with "none"; MaxRL's, "mean"."""
    answer = []
    for reward, g in zip(rewards, group, strict=True):
        known = [r for r, h in zip(rewards, group, strict=True) if h == g and not math.isnan(r)]
        if math.isnan(reward) or len(known) < 2 or len(set(known)) == 1:
            answer.append(0.0)
            continue
        mean = sum(known) / len(known)
        if scale == "mean":
            answer.append((reward - mean) / mean if mean > 0 else 0.0)
            continue
        deviation = math.sqrt(sum((r - mean) ** 2 for r in known) / (len(known) - 1))
        answer.append((reward - mean) / (deviation if scale == "std" else 1.0))
    return answer


def leave_one_out(rewards: list[float], group: list[int]) -> list[float]:
    """RLOO's advantage (arXiv:2402.14740): reward minus the mean of the others."""
    answer = []
    for i, (reward, g) in enumerate(zip(rewards, group, strict=True)):
        others = [
            r
            for j, (r, h) in enumerate(zip(rewards, group, strict=True))
            if h == g and j != i and not math.isnan(r)
        ]
        if math.isnan(reward) or not others:
            answer.append(0.0)
        else:
            answer.append(reward - sum(others) / len(others))
    return answer


def reinforce_pp(rewards: list[float], group: list[int] | None) -> list[float]:
    """REINFORCE++ (arXiv:2501.03262) over completions; with groups that of its variant with a baseline."""
    scored = [i for i, r in enumerate(rewards) if not math.isnan(r)]
    if group is None:
        mean = sum(rewards[i] for i in scored) / max(len(scored), 1)
        apart = {i: rewards[i] - mean for i in scored}
    else:
        apart = dict(zip(range(len(rewards)), group_advantage(rewards, group, "none"), strict=True))
    equal = len({rewards[i] for i in scored}) < 2 if group is None else not any(apart.values())
    if equal or len(scored) < 2:
        return [0.0] * len(rewards)
    deviation = math.sqrt(sum(apart[i] ** 2 for i in scored) / (len(scored) - 1))
    return [apart[i] / deviation if i in scored else 0.0 for i in range(len(rewards))]


def gae(rewards: Array, values: Array, mask: NDArray[np.bool_], gamma: float, lam: float) -> Array:
    """Equation 16 of arXiv:1506.02438, as the sum it is: Σₗ (gamma·lam)ˡ δₜ₊ₗ over the tokens on the mask."""
    answer = np.zeros(rewards.shape)
    for i in range(len(rewards)):
        tokens = list(np.nonzero(mask[i])[0])
        value = [values[i, t] for t in tokens] + [0.0]
        errors = [rewards[i, t] + gamma * value[k + 1] - value[k] for k, t in enumerate(tokens)]
        for k, t in enumerate(tokens):
            answer[i, t] = sum((gamma * lam) ** (m - k) * errors[m] for m in range(k, len(tokens)))
    return answer

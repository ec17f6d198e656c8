"""Semantic entropy and EMPO's reward (arXiv:2504.05812), completion by completion."""

import math
from collections import Counter


def semantic(
    cluster: list[int], group: list[int], low: float | None, high: float | None
) -> tuple[list[float], list[float]]:
    """(entropy of its group, reward) of each completion; a negative cluster is no answer."""
    names = [f"cluster {c}" if c >= 0 else f"no answer, completion {i}" for i, c in enumerate(cluster)]
    entropies, rewards = [], []
    for i, g in enumerate(group):
        answers = Counter(name for name, h in zip(names, group, strict=True) if h == g)
        size = sum(answers.values())
        entropy = -sum(n / size * math.log(n / size) for n in answers.values())
        inside = (low is None or entropy > low) and (high is None or entropy < high)
        entropies.append(entropy)
        rewards.append(answers[names[i]] / size if inside and cluster[i] >= 0 else 0.0)
    return entropies, rewards

"""Rewards that know no answer: agreement within a prompt's group, and chance."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from klent.objectives import empo_reward, semantic_entropy
from klent.tasks.clusters import NO_ANSWER, Equivalence, find_clusters, is_copy, load_equivalence
from klent.tasks.verifiers import Completion

_equivalence = cache(load_equivalence)  # a worker serves one reward; its model is loaded once


def empo(
    prompts: list[Any],
    completions: list[Completion],
    *,
    same: str = "text",
    threshold: float = 0.85,
    low: float | None = None,
    high: float | None = None,
    truncated: bool = False,
    finish: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] = lambda name, value: None,
    **columns: Any,
) -> list[float | None]:
    """EMPO: the share of the prompt's completions that gave the same answer. No right answer is looked at.

        rᵢ = pⱼ, the share of completion i's cluster;   0 for the whole group unless low < H < high

    Completions of the same prompt are one group. One that is empty, that only repeats words of the question,
    or that the token budget cut, has no answer: it agrees with nothing and gets 0. Where cut completions
    count, a policy learns to be cut: all then agree on the last number that the question has.

    Args:
        prompts: text or messages.
        completions: text or messages, one a prompt.
        same: when two answers are the same: ``text``, ``number``, ``math``, ``meaning`` or
            ``path/to/file.py:function``; see :func:`klent.tasks.clusters.load_equivalence`.
        threshold: the cosine from which on two completions mean the same, with ``same: meaning``.
        low: semantic entropy that a group must exceed, nats; None is no bound.
        high: semantic entropy that a group must stay below, nats; None is no bound.
        truncated: True = what a completion said before it was cut is its answer.
        finish: ``length`` for each that was cut; None = none was.
        log_metric: receives ``semantic/...``: see docs/metrics.md.
        columns: not looked at.

    Returns:
        Rewards in [0, 1]; None for a completion whose prompt has no other, which says nothing of agreement.

    Example:
        >>> empo(["4+5?"] * 4, ["9", "It is 9.", "8", ""], same="number")
        [0.5, 0.5, 0.25, 0.0]

    References:
        Zhang et al., Right Question is Already Half the Answer (EMPO), 2025, arXiv:2504.05812.
    """
    relation = _equivalence(same, threshold=threshold)
    texts = [plain(completion) for completion in completions]
    if not truncated:
        ends = finish or ["stop"] * len(texts)
        texts = ["" if end == "length" else text for text, end in zip(texts, ends, strict=True)]
    groups = by_prompt(prompts)
    cluster, group = label(texts, groups, [question(prompt) for prompt in prompts], relation)
    reward = empo_reward(cluster, group, low=low, high=high).tolist()
    copied = sum(is_copy(text, question(prompt)) for text, prompt in zip(texts, prompts, strict=True))
    for name, value in _metrics(cluster, group, reward, copied).items():
        log_metric(name, value)
    size = Counter(group.tolist())
    return [value if size[number] > 1 else None for value, number in zip(reward, group.tolist(), strict=True)]


def random(
    prompts: list[Any], completions: list[Completion], *, seed: int = 0, p: float = 0.5, **columns: Any
) -> list[float | None]:
    """1 with chance ``p``, else 0, whatever the completion says: the control for every other reward.

    A function of seed, prompt and the completion's place among those of its prompt. The text has no part in
    it: a reward that the same text always gets could be learnt.

    Args:
        prompts: text or messages.
        completions: not looked at.
        seed: another seed, other rewards.
        p: chance of a 1, in [0, 1].
        columns: not looked at.

    Returns:
        1.0 or 0.0 a completion.

    Example:
        >>> random(["a"] * 8, [""] * 8)
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p is a chance, in [0, 1], not {p}")
    seen: Counter[str] = Counter()
    rewards: list[float | None] = []
    for prompt in prompts:
        key = json.dumps([seed, prompt])
        digest = hashlib.sha256(f"{key}/{seen[key]}".encode()).digest()
        rewards.append(float(int.from_bytes(digest[:7]) < p * 256**7))
        seen[key] += 1
    return rewards


def by_prompt(prompts: Sequence[Any]) -> list[int]:
    """The group of each completion: the place of the first with the same prompt."""
    first: dict[str, int] = {}
    return [first.setdefault(json.dumps(prompt), place) for place, prompt in enumerate(prompts)]


def label(
    texts: Sequence[str], groups: Sequence[int], questions: Sequence[str], relation: Equivalence
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cluster and the group of each completion, ``[n]`` integers."""
    cluster = [NO_ANSWER] * len(texts)
    for number in dict.fromkeys(groups):
        members = [place for place, own in enumerate(groups) if own == number]
        found = find_clusters([texts[place] for place in members], relation, questions[number])
        for place, value in zip(members, found, strict=True):
            cluster[place] = value
    return torch.tensor(cluster), torch.tensor(groups)


def question(prompt: Any) -> str:
    """What was asked: text, or the last message of the user."""
    if isinstance(prompt, str):
        return prompt
    return next((m["content"] for m in reversed(prompt) if m["role"] == "user"), "")


def plain(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def _metrics(
    cluster: torch.Tensor, group: torch.Tensor, reward: list[float], copied: int
) -> dict[str, float]:
    """Means over groups of what their answers look like, and how their entropies are spread."""
    values = semantic_entropy(cluster, group)
    entropy, clusters, largest, used = [], [], [], []
    for number in group.unique().tolist():
        own = group == number
        counts = Counter(cluster[own].tolist())
        empty = counts.pop(NO_ANSWER, 0)
        entropy.append(float(values[own][0]))
        clusters.append(len(counts) + empty)
        largest.append(max([*counts.values(), 0]) / int(own.sum()))
        used.append(any(reward[place] for place in own.nonzero()[:, 0].tolist()))
    entropy.sort()
    last = len(entropy) - 1
    return {
        "semantic/entropy": math.fsum(entropy) / len(entropy),
        "semantic/entropy_p10": entropy[round(0.1 * last)],
        "semantic/entropy_p90": entropy[round(0.9 * last)],
        "semantic/clusters": sum(clusters) / len(clusters),
        "semantic/majority": sum(largest) / len(largest),
        "semantic/used": sum(used) / len(used),
        "semantic/empty": float((cluster == NO_ANSWER).double().mean()),
        "semantic/copied": copied / len(cluster),
    }

"""Rewards that need no answer: agreement within a prompt's group, and chance."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

import torch

from klent.objectives import empo_reward, semantic_entropy
from klent.streams.prompt import Messages, text_of
from klent.tasks.clusters import NO_ANSWER, Equivalence, find_clusters, is_copy, load_equivalence
from klent.tasks.verifiers import Completion

Prompted = str | Messages  # a prompt: text or messages

_equivalence = cache(load_equivalence)  # a worker serves one reward; its model is loaded once


def empo(
    prompts: Sequence[Prompted],
    completions: Sequence[Completion],
    *,
    same: str = "text",
    threshold: float = 0.85,
    low: float | None = None,
    high: float | None = None,
    truncated: bool = False,
    finish: Sequence[str] | None = None,
    log_metric: Callable[[str, float], None] = lambda name, value: None,
    **columns: object,
) -> list[float | None]:
    """EMPO: the share of the prompt's completions that gave the same answer. No right answer is used.

        rᵢ = pⱼ, the share of completion i's cluster;   0 for the whole group unless low < H < high

    Completions of the same prompt are one group. One that is empty, that only repeats part of the question,
    or that the token budget cut, has no answer: it agrees with nothing and gets 0. If cut completions
    counted, a policy would learn to be cut: all then agree on the last number in the question.

    Args:
        prompts: text or messages.
        completions: text or messages, one per prompt.
        same: when two answers are the same: ``text``, ``number``, ``math``, ``meaning`` or
            ``path/to/file.py:function``; see :func:`klent.tasks.clusters.load_equivalence`.
        threshold: the smallest cosine at which two completions mean the same, with ``same: meaning``.
        low: semantic entropy that a group must exceed, nats; None = no bound.
        high: semantic entropy that a group must stay below, nats; None = no bound.
        truncated: True = the text before the cut is the completion's answer.
        finish: ``length`` for each completion that was cut; None = none was.
        log_metric: receives ``semantic/...``: see docs/metrics.md.
        columns: not used.

    Returns:
        Rewards in [0, 1]; None for the only completion of a prompt, where agreement is undefined.

    Example:
        >>> empo(["4+5?"] * 4, ["9", "It is 9.", "8", ""], same="number")
        [0.5, 0.5, 0.25, 0.0]

    References:
        Zhang et al., Right Question is Already Half the Answer (EMPO), 2025, arXiv:2504.05812.
    """
    equivalence = _equivalence(same, threshold=threshold)
    texts = [plain(completion) for completion in completions]
    if not truncated:
        ends = finish or ["stop"] * len(texts)
        texts = ["" if end == "length" else text for text, end in zip(texts, ends, strict=True)]
    groups = by_prompt(prompts)
    cluster, group = label(texts, groups, [question(prompt) for prompt in prompts], equivalence)
    reward = empo_reward(cluster, group, low=low, high=high).tolist()
    copied = sum(is_copy(text, question(prompt)) for text, prompt in zip(texts, prompts, strict=True))
    for name, value in _metrics(cluster, group, reward, copied).items():
        log_metric(name, value)
    size = Counter(group.tolist())
    return [value if size[number] > 1 else None for value, number in zip(reward, group.tolist(), strict=True)]


def random(
    prompts: Sequence[Prompted],
    completions: Sequence[Completion],
    *,
    seed: int = 0,
    p: float = 0.5,
    **columns: object,
) -> list[float | None]:
    """1 with chance ``p``, else 0, whatever the completion says: the control for every other reward.

    A function of seed, prompt and the completion's index among those of its prompt, not of its text: a reward
    that is always the same for the same text could be learnt.

    Args:
        prompts: text or messages.
        completions: not used.
        seed: another seed gives other rewards.
        p: chance of a 1, in [0, 1].
        columns: not used.

    Returns:
        1.0 or 0.0 per completion.

    Example:
        >>> random(["a"] * 8, [""] * 8)
        [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability in [0, 1], not {p}")
    seen: Counter[str] = Counter()
    rewards: list[float | None] = []
    for prompt in prompts:
        key = json.dumps([seed, prompt])
        digest = hashlib.sha256(f"{key}/{seen[key]}".encode()).digest()
        rewards.append(float(int.from_bytes(digest[:7]) < p * 256**7))
        seen[key] += 1
    return rewards


def by_prompt(prompts: Sequence[Prompted]) -> list[int]:
    """The group of each completion: the index of the first with the same prompt."""
    first: dict[str, int] = {}
    return [first.setdefault(json.dumps(prompt), index) for index, prompt in enumerate(prompts)]


def label(
    texts: Sequence[str], groups: Sequence[int], questions: Sequence[str], equivalence: Equivalence
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cluster and the group of each completion, ``[n]`` integers."""
    cluster = [NO_ANSWER] * len(texts)
    for number in dict.fromkeys(groups):
        members = [index for index, group in enumerate(groups) if group == number]
        labels = find_clusters([texts[index] for index in members], equivalence, questions[number])
        for index, value in zip(members, labels, strict=True):
            cluster[index] = value
    return torch.tensor(cluster), torch.tensor(groups)


def question(prompt: Prompted) -> str:
    """What was asked: the text, or the user's last message."""
    if isinstance(prompt, str):
        return prompt
    return next((text_of(m["content"]) for m in reversed(prompt) if m["role"] == "user"), "")


def plain(completion: Completion) -> str:
    """A completion as text."""
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def _metrics(
    cluster: torch.Tensor, group: torch.Tensor, reward: list[float], copied: int
) -> dict[str, float]:
    """Means over groups of how many answers they have and how these are spread, and quantiles of entropy."""
    values = semantic_entropy(cluster, group)
    entropy, clusters, largest, used = [], [], [], []
    for number in group.unique().tolist():
        members = group == number
        counts = Counter(cluster[members].tolist())
        empty = counts.pop(NO_ANSWER, 0)
        entropy.append(float(values[members][0]))
        clusters.append(len(counts) + empty)
        largest.append(max([*counts.values(), 0]) / int(members.sum()))
        used.append(any(reward[index] for index in members.nonzero()[:, 0].tolist()))
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

"""Answers grouped by meaning: how scattered they are, and a reward for agreeing with the others."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_ids, check_number
from klent.objectives.kinds import estimator

__all__ = ["empo_reward", "semantic_entropy"]


#: nats within which an entropy counts as equal to a threshold: float64 logarithms agree to 1e-15
_ROUNDING = 1e-9


@estimator
def semantic_entropy(cluster: Tensor, group: Tensor) -> Tensor:
    """Entropy of the answers to a prompt, where answers that mean the same are one.

        H = -Σⱼ pⱼ·log pⱼ,   pⱼ = share of the group's completions in cluster j

    0 where all agree, log of the group's size where no two do.

    Args:
        cluster: which completions mean the same, ``[n]`` integers, compared within a group only. A negative
            one is no answer: it agrees with nothing, not even with another negative one.
        group: which completions answer the same prompt, ``[n]`` integers, in any order and with gaps.

    Returns:
        Nats, ``[n]``, of torch's default dtype: each completion carries its group's entropy.

    Raises:
        TypeError: a tensor does not hold integers.
        ValueError: shapes are not ``[n]`` or differ.

    Note:
        The plug-in estimate from a few samples: below the model's own on average, and never above log of the
        group's size.

    Example:
        >>> import torch
        >>> from klent.objectives import semantic_entropy
        >>> semantic_entropy(torch.tensor([5, 5, 5, 2, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1]))
        tensor([0.5623, 0.5623, 0.5623, 0.5623, 0.0000, 0.0000])

    References:
        Kuhn, Gal and Farquhar, Semantic Uncertainty, 2023, arXiv:2302.09664.
        Zhang et al., Right Question is Already Half the Answer (EMPO), 2025, arXiv:2504.05812.
    """
    entropy, _ = _entropy_and_share(cluster, group)
    return entropy.to(torch.get_default_dtype())


@estimator
def empo_reward(
    cluster: Tensor, group: Tensor, *, low: float | None = None, high: float | None = None
) -> Tensor:
    """Reward without a verifier: the share of the group that gave the same answer.

        rᵢ = pⱼ, the share of completion i's cluster;   0 for the whole group unless low < H < high

    Training on it makes answers agree. The thresholds leave out prompts whose answers already agree, and
    those whose answers are too scattered to say anything.

    Args:
        cluster: which completions mean the same, ``[n]`` integers. A negative one is no answer, and gets 0.
        group: which completions answer the same prompt, ``[n]`` integers, in any order and with gaps.
        low: semantic entropy that a group must exceed, nats, at least 0; None is no bound.
        high: semantic entropy that a group must stay below, nats, above ``low``; None is no bound.

    Returns:
        ``[n]``, in [0, 1], of torch's default dtype. Equal rewards within a group, as outside the thresholds,
        make ``group_advantage`` exactly 0.

    Raises:
        TypeError: a tensor does not hold integers, or a threshold is not a number.
        ValueError: shapes are not ``[n]`` or differ, or a threshold is out of range.

    Note:
        *What it maximises.* The group's mean reward is Σⱼ pⱼ², the chance that two answers agree. Its
        logarithm is minus the collision (Rényi-2) entropy; the gradient of Shannon's would need log pⱼ as
        the reward.

        *Limits.* The best it can do is to make the most frequent answer certain, right or wrong: majority
        vote. The thresholds slow this down and do not prevent it. p depends on the group's size.

        *Against released code.* For mathematics only completions without an answer get 0, and ``high`` is
        log of the group's size: a group without two equal answers. In the authors' later version there are no
        thresholds, and no answer is a cluster of its own with reward 1/n.

    Example:
        The first group's entropy is 0.56, the second's 0 and the third's log 2.

        >>> import torch
        >>> from klent.objectives import empo_reward
        >>> cluster, group = torch.tensor([5, 5, 5, 2, 0, 0, 7, -1]), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
        >>> empo_reward(cluster, group)
        tensor([0.7500, 0.7500, 0.7500, 0.2500, 1.0000, 1.0000, 0.5000, 0.0000])
        >>> empo_reward(cluster, group, low=0.1, high=0.6)
        tensor([0.7500, 0.7500, 0.7500, 0.2500, 0.0000, 0.0000, 0.0000, 0.0000])

    References:
        Zhang et al., Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning
        Incentivization (EMPO), 2025, arXiv:2504.05812.
    """
    if low is not None:
        check_number("low", low, 0, math.inf, ends="[)")
    if high is not None:
        check_number("high", high, low or 0, math.inf, ends="(]")
    entropy, agreeing = _entropy_and_share(cluster, group)
    rewarded = cluster >= 0
    if low is not None:
        rewarded = rewarded & (entropy > low + _ROUNDING)
    if high is not None:
        rewarded = rewarded & (entropy < high - _ROUNDING)
    return torch.where(rewarded, agreeing, 0.0).to(torch.get_default_dtype())


def _entropy_and_share(cluster: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """For each completion the entropy of its group and the share of its cluster in it, float64."""
    check_ids("cluster", cluster)
    check_ids("group", group)
    if cluster.ndim != 1:
        raise ValueError(f"cluster has shape {list(cluster.shape)}, expected [n]: one id per completion")
    if group.shape != cluster.shape:
        raise ValueError(
            f"group has shape {list(group.shape)}, expected {list(cluster.shape)} as cluster has"
        )
    alone = -1 - torch.arange(len(cluster), device=cluster.device)
    cluster = torch.where(cluster < 0, alone, cluster)
    _, group, size = torch.unique(group, return_inverse=True, return_counts=True)
    ids, cluster = torch.unique(cluster, return_inverse=True)
    width = max(len(ids), 1)
    pairs, pair, count = torch.unique(group * width + cluster, return_inverse=True, return_counts=True)
    home = pairs // width  # the group of each cluster
    share = count.double() / size[home]
    # Σ p·log(count), not -Σ p·log p: log size minus this is exactly 0, or log size, at the two ends
    cost = torch.zeros(len(size), dtype=torch.float64, device=cluster.device)
    entropy = size.double().log() - cost.index_add(0, home, share * count.double().log())
    return entropy[group], share[pair]

"""From rewards to advantages: how much better than expected each completion, or token, was."""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives import kinds
from klent.objectives.checks import check_choice, check_groups, check_number, check_tokens
from klent.objectives.masking import on_mask

__all__ = [
    "gae",
    "group_advantage",
    "leave_one_out",
    "reinforce_pp",
    "reinforce_pp_baseline",
    "reward_to_go",
    "reward_weights",
]


@kinds.advantage
def group_advantage(
    rewards: Tensor, group: Tensor, *, scale: Literal["std", "none", "mean"] = "std"
) -> Tensor:
    """Rewards compared with the others of their group: GRPO's advantage.

        none   Aᵢ = rᵢ - mean(r)
        std    Aᵢ = (rᵢ - mean(r)) / std(r)
        mean   Aᵢ = (rᵢ - mean(r)) / mean(r)

    The group, completions of one prompt, tells how hard the prompt is, so that no value model is needed.

    Args:
        rewards: one per completion, ``[n]``. NaN (or infinite) means unscorable.
        group: which completions belong together, ``[n]`` integers, in any order and with gaps.
        scale: ``std`` divides by the group's standard deviation (GRPO), ``none`` does not (Dr. GRPO), ``mean``
            divides by the mean (MaxRL), for rewards that are not negative.

    Returns:
        ``[n]``, without gradient: one number per completion, not yet repeated along its tokens. Exactly 0
        for an unscorable completion, which is left out of its group's mean and deviation as well, and for a
        whole group that has fewer than 2 scorable rewards or rewards that are equal up to rounding; with
        ``mean`` also where the mean is not positive: there is no logarithm of such a success rate, and
        dividing by a negative mean would reward the worse completions.

    Raises:
        TypeError: ``rewards`` is not floating point or ``group`` not integers.
        ValueError: shapes are not ``[n]``, or ``scale`` is unknown.

    Note:
        *Deviation.* The sample's, Σ(r - mean)² / (n - 1), as ``torch.std`` computes it and with it TRL and
        verl, so their recipes carry over; the population's would make advantages larger by √(n / (n - 1)).
        Nothing is added to it: those trainers need an epsilon for equal rewards, which here are 0 by rule,
        and without one the advantages do not depend on the unit of the reward.

        *Effect.* Dividing by the deviation weighs prompts that are nearly always, or nearly never, solved
        more than those solved half the time. Dividing by the mean weighs a prompt of success rate p like 1/p:
        for rewards 0 and 1 and n completions the mean of A·∇logp is exactly (1 - (1 - p)ⁿ⁻¹)/p·∇p, the gradient
        of log p cut after its first n - 1 terms. (The paper says n terms, which holds where a group without a
        success gets -1 for each; as in its code, such a group gets 0 here.)

    Example:
        >>> import torch
        >>> from klent.objectives import group_advantage
        >>> rewards = torch.tensor([1.0, 0.0, 0.0, float("nan"), 0.1, 0.1, 0.1])
        >>> group = torch.tensor([7, 7, 7, 7, 3, 3, 3])
        >>> group_advantage(rewards, group, scale="none")
        tensor([ 0.6667, -0.3333, -0.3333,  0.0000,  0.0000,  0.0000,  0.0000])
        >>> group_advantage(rewards, group)
        tensor([ 1.1547, -0.5774, -0.5774,  0.0000,  0.0000,  0.0000,  0.0000])

    References:
        Shao et al., DeepSeekMath, 2024, arXiv:2402.03300.
        Liu et al., Understanding R1-Zero-Like Training (Dr. GRPO), 2025, arXiv:2503.20783.
        Tajwar et al., Maximum Likelihood Reinforcement Learning (MaxRL), 2026, arXiv:2602.02710.
    """
    check_groups(rewards, group)
    check_choice("scale", scale, ("std", "none", "mean"))
    centred, count, differ, member = _centre(rewards, group)
    if scale == "none":
        return centred
    if scale == "mean":
        mean = _group_mean(rewards, count, member)
        return torch.where(mean > 0, centred / mean.clamp(min=torch.finfo(mean.dtype).tiny), 0.0)
    variance = _group_sum(centred.square(), member) / (count - 1).clamp(min=1)
    return centred / torch.where(differ, variance, 1.0).sqrt()


@kinds.advantage
def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """Rewards compared with the mean of the *other* completions of their group: RLOO's advantage.

        Aᵢ = rᵢ - Σ_{j≠i} rⱼ / (n - 1) = n / (n - 1)·(rᵢ - mean(r))

    A baseline that does not contain the completion's own reward leaves the policy gradient unbiased.

    Args:
        rewards: one per completion, ``[n]``. NaN (or infinite) means unscorable.
        group: which completions belong together, ``[n]`` integers, in any order and with gaps.

    Returns:
        ``[n]``, without gradient, in units of reward: one number per completion, not yet repeated along its
        tokens. Exactly 0 where ``group_advantage`` is.

    Raises:
        TypeError: ``rewards`` is not floating point or ``group`` not integers.
        ValueError: shapes are not ``[n]``.

    Example:
        >>> import torch
        >>> from klent.objectives import leave_one_out
        >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0, 5.0]), torch.tensor([0, 0, 0, 1]))
        tensor([ 1.0000, -0.5000, -0.5000,  0.0000])

    References:
        Kool et al., Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019.
        Ahmadian et al., Back to Basics, 2024, arXiv:2402.14740.
    """
    check_groups(rewards, group)
    centred, count, _, _ = _centre(rewards, group)
    return centred * count / (count - 1).clamp(min=1)


@kinds.advantage
def reward_weights(rewards: Tensor, group: Tensor, *, beta: float) -> Tensor:
    """How much of a group's imitation each completion gets: reward-weighted regression.

        Aᵢ = n·exp(rᵢ/beta) / Σⱼ exp(rⱼ/beta)

    With ``reinforce`` the policy imitates its own completions, the better ones more: it is moved towards itself
    tilted by exp(r/beta). No completion is pushed down.

    Args:
        rewards: one per completion, ``[n]``. NaN (or infinite) means unscorable.
        group: which completions belong together, ``[n]`` integers, in any order and with gaps.
        beta: reward that makes a completion e times as heavy, > 0.

    Returns:
        ``[n]``, without gradient: 1 on average over a group's scorable completions, 0 for an unscorable one.

    Raises:
        TypeError: ``rewards`` is not floating point, ``group`` not integers, or ``beta`` not a number.
        ValueError: shapes are not ``[n]`` or ``beta`` is out of range.

    Note:
        *Exactness.* Of samples of one policy, as the group grows the loss has the gradient of the forward KL from
        that policy's tilt by exp(r/beta). Every step tilts anew from where the last one ended: held to nothing,
        the policy is after k steps at about exp(k·r/beta).

        *Groups of equal rewards* imitate themselves: a gradient of mean 0 and not without noise.

    Example:
        >>> import torch
        >>> from klent.objectives import reward_weights
        >>> reward_weights(torch.tensor([0.0, 1.0986]), torch.tensor([0, 0]), beta=1.0)
        tensor([0.5000, 1.5000])

    References:
        Peters and Schaal, Reinforcement learning by reward-weighted regression for operational space control, 2007.
        Black et al., Training Diffusion Models with Reinforcement Learning, 2023, arXiv:2305.13301 (its RWR).
    """
    check_groups(rewards, group)
    check_number("beta", beta, 0, math.inf, ends="()")
    centred, count, _, member = _centre(rewards, group)
    below = centred - _group_max(centred, member)
    weight = torch.where(rewards.isfinite(), (below / beta).exp(), 0.0)
    return weight * count / _group_sum(weight, member).clamp(min=1)


@kinds.advantage
def reinforce_pp(rewards: Tensor) -> Tensor:
    """Rewards compared with those of the whole batch: REINFORCE++'s advantage.

        Aᵢ = (rᵢ - mean(r)) / std(r),  over all prompts

    No group is needed: one completion per prompt will do. A hard prompt's completions are all below the mean.

    Args:
        rewards: one per completion of the step, ``[n]``. NaN (or infinite) means unscorable.

    Returns:
        ``[n]``, without gradient, not yet repeated along its tokens. Exactly 0 for an unscorable completion,
        which is left out of mean and deviation as well, and for a batch that has fewer than 2 scorable rewards
        or rewards that are equal up to rounding.

    Raises:
        TypeError: ``rewards`` is not floating point.
        ValueError: ``rewards`` is not ``[n]``.

    Note:
        *Batch dependence.* Mean and deviation are of the tensor given: give a step, not a micro-batch.

        *Against released code.* OpenRLHF and verl normalise over tokens, so that a long completion counts for
        more in mean and deviation, and put the KL into the reward first; here a completion counts once, and a
        ``token_reward`` joins afterwards. The deviation is the sample's, with nothing added to it.

    Example:
        >>> import torch
        >>> from klent.objectives import reinforce_pp
        >>> reinforce_pp(torch.tensor([1.0, 0.0, 0.0, float("nan")]))
        tensor([ 1.1547, -0.5774, -0.5774,  0.0000])

    References:
        Hu et al., REINFORCE++, 2025, arXiv:2501.03262.
    """
    check_groups(rewards, torch.zeros(rewards.shape, dtype=torch.long, device=rewards.device))
    scorable = rewards.isfinite()
    (known,) = on_mask(scorable, rewards.detach())
    count, size, total = scorable.sum().to(known.dtype), known.abs().sum(), known.sum()
    (centred,) = on_mask(scorable, known - total / count.clamp(min=1))
    return _of_one_scale(centred, count, size)


@kinds.advantage
def reinforce_pp_baseline(rewards: Tensor, group: Tensor) -> Tensor:
    """Rewards compared with their group and scaled over the whole batch: REINFORCE++-baseline's advantage.

        Aᵢ = (rᵢ - mean of its group) / std of these differences over all prompts

    The group tells how hard a prompt is; one scale for all leaves a prompt's weight to its own spread, where
    ``group_advantage`` makes that of every prompt 1.

    Args:
        rewards: one per completion of the step, ``[n]``. NaN (or infinite) means unscorable.
        group: which completions belong together, ``[n]`` integers, in any order and with gaps.

    Returns:
        ``[n]``, without gradient, not yet repeated along its tokens. Exactly 0 where ``group_advantage`` is.

    Raises:
        TypeError: ``rewards`` is not floating point or ``group`` not integers.
        ValueError: shapes are not ``[n]``.

    Note:
        *Deviation.* Over all scorable completions, those of groups with equal rewards included, whose
        difference is 0; the sample's, Σd² / (n - 1), as the differences' mean is 0.

        *Batch dependence* and *released code* as of ``reinforce_pp``.

    Example:
        The differences are ±0.5 and 0; their deviation is √(0.5 / 3).

        >>> import torch
        >>> from klent.objectives import reinforce_pp_baseline
        >>> reinforce_pp_baseline(torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        tensor([ 1.2247, -1.2247,  0.0000,  0.0000])

    References:
        Hu et al., REINFORCE++, 2025, arXiv:2501.03262.
    """
    check_groups(rewards, group)
    centred, *_ = _centre(rewards, group)
    count = rewards.isfinite().sum().to(centred.dtype)
    return _of_one_scale(centred, count, torch.zeros_like(count))


@kinds.advantage
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 1.0) -> Tensor:
    """Generalised advantage estimation.

        δₜ = rₜ + gamma·Vₜ₊₁ - Vₜ
        Aₜ = δₜ + gamma·lam·Aₜ₊₁

    ``lam`` trades the variance of what really followed (1) for the bias of the value model (0).

    Args:
        rewards: reward received at each token, ``[B, T]``. A score for the completion goes on its last token.
        values: expected reward from before each token on, ``[B, T]``. Receives no gradient.
        mask: True on the tokens of the episode, ``[B, T]`` bool. "Next" is the next token on the mask, so
            tokens left out in between (a tool's answer) neither discount nor end the episode; it ends, with
            value 0, after the last.
        gamma: discount per token, in [0, 1].
        lam: in [0, 1].

    Returns:
        ``[B, T]``, without gradient, in units of reward, 0 off the mask. Not standardised. The value model's
        target is this plus ``values``.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a factor not a number.
        ValueError: shapes differ or a factor is outside [0, 1].

    Example:
        δ is (0.5 - 0.25, 1 - 0.5), so A is (0.25 + 0.5·0.5, 0.5).

        >>> import torch
        >>> from klent.objectives import gae
        >>> rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25, 0.5]])
        >>> gae(rewards, values, torch.tensor([[True, True]]), lam=0.5)
        tensor([[0.5000, 0.5000]])

    References:
        Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, 2015,
        arXiv:1506.02438.
    """
    check_tokens(mask, rewards=rewards, values=values)
    check_number("gamma", gamma, 0, 1)
    check_number("lam", lam, 0, 1)
    rewards, values = on_mask(mask, rewards.detach(), values.detach())
    advantage = torch.zeros_like(rewards)
    next_value = next_advantage = rewards.new_zeros(rewards.shape[0])
    for t in reversed(range(rewards.shape[1])):
        error = rewards[:, t] + gamma * next_value - values[:, t]
        advantage[:, t] = torch.where(mask[:, t], error + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage[:, t], next_advantage)
    return advantage


@kinds.estimator
def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Sum of the rewards from each token on.

        Gₜ = rₜ + gamma·Gₜ₊₁

    What a token can still be praised or blamed for. With ``kl_in_reward`` and gamma 1 it makes a penalty on
    the KL exact for whole sequences.

    Args:
        rewards: reward received at each token, ``[B, T]``.
        mask: True on the tokens of the episode, ``[B, T]`` bool. Tokens left out in between do not discount.
        gamma: discount per token, in [0, 1].

    Returns:
        ``[B, T]``, without gradient, in units of reward, 0 off the mask.

    Raises:
        TypeError: ``mask`` is not bool, ``rewards`` not floating point, or ``gamma`` not a number.
        ValueError: shapes differ or ``gamma`` is outside [0, 1].

    Example:
        >>> import torch
        >>> from klent.objectives import reward_to_go
        >>> reward_to_go(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, True]]))
        tensor([[7., 6., 4.]])
    """
    check_tokens(mask, rewards=rewards)
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)


def _centre(rewards: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards minus their group's mean; and for each, of its group: scorable, whether they differ, index."""
    rewards = rewards.detach()
    scorable = rewards.isfinite()
    _, member = torch.unique(group, return_inverse=True)
    (known,) = on_mask(scorable, rewards)
    count = _group_sum(scorable.to(rewards.dtype), member)
    mean = _group_mean(rewards, count, member)
    highest = _group_max(torch.where(scorable, rewards, -torch.inf), member)
    lowest = -_group_max(torch.where(scorable, -rewards, -torch.inf), member)
    # Equal up to rounding is equal: the std of 0.1 + 0.2 and 0.3 would turn the last bit into a ±1. (The only
    # scorable reward of a group is equal to itself, so it needs no rule of its own.)
    rounding = 4 * torch.finfo(rewards.dtype).eps * _group_max(known.abs(), member)
    differ = highest - lowest > rounding
    (centred,) = on_mask(scorable & differ, known - mean)
    return centred, count, differ, member


def _of_one_scale(centred: Tensor, count: Tensor, size: Tensor) -> Tensor:
    """Differences over their deviation; 0 where that is rounding.

    Args:
        centred: differences from a mean, ``[n]``, 0 where unscorable.
        count: scorable ones.
        size: their absolute values added up, whose rounding is left in the differences; 0 = none is.
    """
    std = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    rounding = 4 * torch.finfo(centred.dtype).eps * size / count.clamp(min=1)
    differ = std > rounding
    return torch.where(differ, centred / torch.where(differ, std, 1.0), 0.0)


def _group_mean(rewards: Tensor, count: Tensor, member: Tensor) -> Tensor:
    """Each entry replaced by the mean over its group's scorable rewards."""
    (known,) = on_mask(rewards.isfinite(), rewards.detach())
    return _group_sum(known, member) / count.clamp(min=1)


def _group_sum(values: Tensor, member: Tensor) -> Tensor:
    """Each entry replaced by the sum over its group."""
    return torch.zeros_like(values).index_add(0, member, values)[member]


def _group_max(values: Tensor, member: Tensor) -> Tensor:
    """Each entry replaced by the largest of its group."""
    return torch.zeros_like(values).scatter_reduce(0, member, values, "amax", include_self=False)[member]

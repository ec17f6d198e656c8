"""PPO with a critic once more: float64, one completion at a time, sums in place of recursions; nothing of klent."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn


@dataclass
class Episode:
    """One completion: what was asked, what was written, and its reward (NaN where unscorable)."""

    prompt: list[int]
    tokens: list[int]
    reward: float


@dataclass
class Actor:
    """Policy, reference and critic as float64 transformers models; ``trunk`` None = the policy's own layers."""

    policy: nn.Module
    reference: nn.Module
    trunk: nn.Module | None
    weight: nn.Parameter
    bias: nn.Parameter

    def logp(self, model: nn.Module, one: Episode) -> Tensor:
        """Log-probability of each token."""
        logits = model(input_ids=torch.tensor([one.prompt + one.tokens])).logits[0, len(one.prompt) - 1 : -1]
        return logits.log_softmax(-1)[torch.arange(len(one.tokens)), torch.tensor(one.tokens)]

    def value(self, one: Episode) -> Tensor:
        """What is expected before each token."""
        layers = (self.trunk or self.policy).model
        hidden = layers(input_ids=torch.tensor([one.prompt + one.tokens])).last_hidden_state
        return hidden[0, len(one.prompt) - 1 : -1] @ self.weight[0] + self.bias[0]


@dataclass
class Settings:
    """Of the method."""

    kl: float
    gamma: float
    lam: float
    clip: float
    value_coef: float
    value_clip: float
    max_norm: float


@dataclass
class Numbers:
    """What a step starts from, completion by completion."""

    logp: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    advantage: list[np.ndarray] = field(default_factory=list)
    returns: list[np.ndarray] = field(default_factory=list)


def gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """The sum that defines it: over all later errors of one step, each discounted from where it is."""
    count = len(rewards)
    following = np.append(values[1:], 0.0)
    errors = rewards + gamma * following - values
    return np.array(
        [sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, count)) for t in range(count)]
    )


def before(actor: Actor, episodes: Sequence[Episode], settings: Settings) -> Numbers:
    """Advantages, whitened over the tokens of all scorable completions, and what the critic is to learn."""
    numbers = Numbers()
    with torch.no_grad():
        for one in episodes:
            logp, value = actor.logp(actor.policy, one), actor.value(one)
            rewards = -settings.kl * (logp - actor.logp(actor.reference, one)).numpy()
            rewards[-1] += one.reward
            scorable = not np.isnan(one.reward)
            advantage = gae(rewards, value.numpy(), settings.gamma, settings.lam)
            numbers.logp.append(logp)
            numbers.value.append(value)
            numbers.advantage.append(advantage if scorable else np.full(len(value), np.nan))
            numbers.returns.append(advantage + value.numpy() if scorable else value.numpy())
    known = np.concatenate(numbers.advantage)
    known = known[~np.isnan(known)]
    numbers.advantage = [
        np.nan_to_num((a - known.mean()) / known.std(ddof=1), nan=0.0) for a in numbers.advantage
    ]
    return numbers


def completion_kl(actor: Actor, episodes: Sequence[Episode], numbers: Numbers) -> float:
    """Mean sum of log-ratios of the policy that sampled to the reference, nats per completion."""
    with torch.no_grad():
        sums = [
            float((logp - actor.logp(actor.reference, one)).sum())
            for logp, one in zip(numbers.logp, episodes, strict=True)
        ]
    return sum(sums) / len(sums)


def update(
    actor: Actor,
    episodes: Sequence[Episode],
    plan: Sequence[Sequence[int]],
    settings: Settings,
    optimizer: torch.optim.Optimizer,
) -> Numbers:
    """One step of training; ``plan`` says which completions each optimizer step sees."""
    numbers = before(actor, episodes, settings)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for rows in plan:
        optimizer.zero_grad()
        total = sum(len(episodes[row].tokens) for row in rows)
        for row in rows:
            loss = _loss(actor, episodes[row], row, numbers, settings)
            (loss.sum() / total).backward()
        given = [p for p in parameters if p.grad is not None]
        norm = torch.sqrt(sum((p.grad.square().sum() for p in given), torch.zeros((), dtype=torch.float64)))
        for p in given:
            p.grad.mul_(min(1.0, settings.max_norm / (float(norm) + 1e-6)))
        optimizer.step()
    return numbers


def _loss(actor: Actor, one: Episode, row: int, numbers: Numbers, settings: Settings) -> Tensor:
    """Of each token: the clipped surrogate, and the larger of the value's errors, free and held."""
    ratio = (actor.logp(actor.policy, one) - numbers.logp[row]).exp()
    advantage, target = torch.tensor(numbers.advantage[row]), torch.tensor(numbers.returns[row])
    held = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    surrogate = -torch.minimum(ratio * advantage, held * advantage)
    value, start = actor.value(one), numbers.value[row]
    near = start + (value - start).clamp(-settings.value_clip, settings.value_clip)
    error = torch.maximum((value - target).square(), (near - target).square())
    if np.isnan(one.reward):  # it was not told what it should have expected
        error = error.detach() * 0
    return surrogate + settings.value_coef * error

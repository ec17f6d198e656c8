"""A contextual bandit whose best action is unlikely at first, and ways to train on it."""

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import SEEDS
from klent.claims.worlds.simplex import inverted

Method = Literal[
    "GRPO",
    "wider clip",
    "no clip",
    "Clip-Cov",
    "random tokens dropped",
    "KL-Cov",
    "random tokens",
    "entropy bonus",
    "entropy minimisation",
]
#: upper bound of the ratio under ``wider clip``, as in DAPO
_CLIP_HIGH = 0.28

CONTEXTS, ACTIONS, GROUP = 32, 20, 8
INNER = 3
#: share of a batch that Clip-Cov and KL-Cov touch; larger than usual because a batch is 256 tokens
FRACTION = 0.02


class Run(NamedTuple):
    """Exact entropy (nats) and expected reward of the policy, averaged over contexts, before each step."""

    entropy: Tensor
    reward: Tensor


@cache
def train(method: Method, *, steps: int, lr: float) -> list[Run]:
    """A run for each seed: ``steps`` batches of one group per context, ``INNER`` gradient steps each.

    The runs are computed beside each other; each draws its own numbers.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    logits = torch.cat([torch.randn(CONTEXTS, ACTIONS, generator=g, dtype=torch.float64) for g in generators])
    value = torch.cat(
        [0.6 * torch.rand(CONTEXTS, ACTIONS, generator=g, dtype=torch.float64) for g in generators]
    )
    logits[:, 0], value[:, 0] = -2.0, 1.0  # the best action, which starts unlikely
    group = torch.arange(len(logits)).repeat_interleave(GROUP)
    entropy, reward = torch.zeros(2, len(SEEDS), steps, dtype=torch.float64)
    for step in range(steps):
        logp = logits.log_softmax(-1)
        p = logp.exp()
        entropy[:, step] = _of_run(-(p * logp).sum(-1)).mean(1)
        reward[:, step] = _of_run((p * value).sum(-1)).mean(1)
        u = torch.cat([torch.rand(CONTEXTS, GROUP, generator=g, dtype=p.dtype) for g in generators])
        action = inverted(p, u).flatten()
        advantage = O.group_advantage(value[group, action], group).unsqueeze(1)
        old = logp[group, action].unsqueeze(1)
        parts = zip(old.chunk(len(SEEDS)), advantage.chunk(len(SEEDS)), generators, strict=True)
        chosen = torch.cat([_chosen(method, *part) for part in parts])
        for _ in range(INNER):
            logits = logits - lr * _gradient(method, logits, group, action, old, advantage, chosen)
    return [Run(*run) for run in zip(entropy, reward, strict=True)]


def _of_run(values: Tensor) -> Tensor:
    return values.view(len(SEEDS), CONTEXTS)


def _chosen(method: Method, old: Tensor, advantage: Tensor, generator: torch.Generator) -> Tensor:
    mask = torch.ones_like(old, dtype=torch.bool)
    if method == "Clip-Cov":
        return O.clip_cov_tokens(old, advantage, mask, fraction=FRACTION, generator=generator)
    if method == "KL-Cov":
        return O.kl_cov_tokens(old, advantage, mask, fraction=FRACTION)
    if method.startswith("random tokens"):  # as many as Clip-Cov's or KL-Cov's
        return O.high_entropy_tokens(torch.rand(old.shape, generator=generator), mask, fraction=FRACTION)
    return torch.zeros_like(mask)


def _gradient(
    method: Method,
    logits: Tensor,
    group: Tensor,
    action: Tensor,
    old: Tensor,
    advantage: Tensor,
    chosen: Tensor,
) -> Tensor:
    logits = logits.detach().requires_grad_()
    logp = logits.log_softmax(-1)
    sampled = logp[group, action].unsqueeze(1)
    mask = torch.ones_like(chosen)
    if method in ("Clip-Cov", "random tokens dropped"):
        loss = O.clip_cov(sampled, old, advantage, mask, dropped=chosen).loss
    elif method in ("KL-Cov", "random tokens"):
        loss = O.kl_cov(sampled, old, advantage, mask, penalised=chosen).loss
    elif method == "no clip":
        loss = O.ppo_clip(sampled, old, advantage, mask, clip_low=1.0, clip_high=float("inf")).loss
    elif method == "wider clip":
        loss = O.ppo_clip(sampled, old, advantage, mask, clip_high=_CLIP_HIGH).loss
    else:
        loss = O.ppo_clip(sampled, old, advantage, mask).loss
    if method in ("entropy bonus", "entropy minimisation"):
        entropy = O.categorical_entropy(logp)[group].unsqueeze(1)
        if method == "entropy bonus":
            loss = loss + O.entropy_loss(entropy, mask, coef=-0.1).loss
        else:  # and nothing else: no reward
            loss = O.entropy_loss(entropy, mask, coef=1.0).loss
    return torch.autograd.grad(O.reduce_tokens(loss, mask, denominator=CONTEXTS * GROUP), logits)[0]

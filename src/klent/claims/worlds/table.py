"""Sequences with a table of logits per position and last token: reward, KL and optimum are exact, many runs at once.

Every tensor of logits is ``[..., T, S + 1, S]``; row 0 is the start, row ``1 + s`` follows token ``s``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from klent.claims.worlds.simplex import draw, random_logits

SYMBOLS, LENGTH = 6, 8


class World(NamedTuple):
    """Log-probabilities of the reference and the reward of each token, ``[T, S + 1, S]``."""

    reference: Tensor
    reward: Tensor


class Value(NamedTuple):
    """Expected reward of a sequence and KL(policy ‖ reference) between whole sequences, ``[...]``."""

    reward: Tensor
    kl: Tensor


def world(seed: int) -> World:
    shape = (LENGTH, SYMBOLS + 1, SYMBOLS)
    return World(random_logits(2 * seed, *shape).log_softmax(-1), random_logits(2 * seed + 1, *shape))


def row_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy ‖ reference) of the next token in each row, ``[..., T, S + 1]``; differentiable."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - reference)).sum(-1)


def evaluate(logits: Tensor, world: World) -> Value:
    """Exact, by walking forward through the positions."""
    p = logits.softmax(-1)
    rewards, kls = (p * world.reward).sum(-1), row_kl(logits, world.reference)
    at = torch.zeros(p.shape[:-3] + p.shape[-2:-1], dtype=p.dtype)
    at[..., 0] = 1.0
    reward, kl = torch.zeros(2, *at.shape[:-1], dtype=p.dtype)
    for t in range(p.shape[-3]):
        reward, kl = reward + (at * rewards[..., t, :]).sum(-1), kl + (at * kls[..., t, :]).sum(-1)
        after = (at.unsqueeze(-1) * p[..., t, :, :]).sum(-2)
        at = torch.cat([torch.zeros_like(after[..., :1]), after], dim=-1)
    return Value(reward, kl)


def best(world: World, coefs: Tensor) -> Tensor:
    """Logits of the policies with the largest reward minus ``coefs``, ``[N]``, times the KL: backward induction."""
    steps, coefs = [], coefs.view(-1, 1, 1)
    value = torch.zeros(1, 1, SYMBOLS, dtype=world.reward.dtype)  # of the positions to come, given the token
    for t in reversed(range(LENGTH)):
        steps.append(world.reference[t] + (world.reward[t] + value) / coefs)
        value = coefs * steps[-1].logsumexp(-1)[:, 1:].unsqueeze(1)
    return torch.stack(steps[::-1], dim=1)


def sample(logits: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens of ``count`` sequences of each policy and the rows that they were drawn in, ``[R, count, T]``."""
    p = logits.softmax(-1)
    run = torch.arange(len(p)).unsqueeze(1)
    row = torch.zeros(len(p), count, dtype=torch.long)
    tokens, rows = [], []
    for t in range(LENGTH):
        rows.append(row)
        tokens.append(draw(p[run, t, row], generator))
        row = tokens[-1] + 1
    return torch.stack(tokens, dim=2), torch.stack(rows, dim=2)

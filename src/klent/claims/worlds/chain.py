"""Sequences whose next token depends on the last one: divergences are sums over positions, whatever the length."""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.worlds.simplex import draw, random_logits


class Sample(NamedTuple):
    """Sequences, and how much each counts in a mean."""

    tokens: Tensor  # [N, T]
    rows: Tensor  # the previous token plus 1, 0 at the start, [N, T]
    chance: Tensor  # [N], sums to 1


class Trio(NamedTuple):
    """Policy, reference and sampler: logits with one row per previous token, ``[S + 1, S]``."""

    policy: Tensor
    reference: Tensor
    sampler: Tensor


def trio(seed: int, symbols: int, length: int, chi2: float, scale: float = 1.0) -> Trio:
    """Random tables; the sampler is the policy moved so far that χ²(policy ‖ sampler) is ``chi2`` per token."""
    policy, reference, direction = (
        random_logits(3 * seed + i, symbols + 1, symbols, scale=scale) for i in range(3)
    )
    if chi2 == 0:
        return Trio(policy, reference, policy)
    low, high = 0.0, 4.0
    for _ in range(50):
        middle = (low + high) / 2
        far = chi2_per_token(policy, policy + middle * direction, length) > chi2
        low, high = (low, middle) if far else (middle, high)
    return Trio(policy, reference, policy + low * direction)


def chi2_per_token(policy: Tensor, sampler: Tensor, length: int) -> float:
    """χ²(policy ‖ sampler) of next tokens, mean over the sampler's prefixes."""
    p, q = policy.softmax(-1), sampler.softmax(-1)
    visits = visited(sampler, length).mean(0)
    return float((visits * ((p.square() / q).sum(-1) - 1)).sum())


def visited(logits: Tensor, length: int) -> Tensor:
    """Probability of each row at each position, ``[T, S + 1]``; differentiable."""
    p = logits.softmax(-1)
    at = torch.zeros(len(p), dtype=p.dtype)
    at[0] = 1.0
    steps = []
    for _ in range(length):
        steps.append(at)
        at = torch.cat([torch.zeros(1, dtype=p.dtype), at @ p])
    return torch.stack(steps)


def row_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy ‖ reference) of the next token in each row, ``[S + 1]``."""
    return O.categorical_kl(logits.log_softmax(-1), reference.log_softmax(-1))


def sequence_kl(logits: Tensor, reference: Tensor, length: int) -> Tensor:
    """KL(policy ‖ reference) between whole sequences, exact and differentiable."""
    return (visited(logits, length) @ row_kl(logits, reference)).sum()


def every(logits: Tensor, length: int) -> Sample:
    """All sequences, with their probability under a policy."""
    tokens = torch.tensor(list(product(range(logits.shape[1]), repeat=length)))
    rows = _before(tokens)
    return Sample(tokens, rows, logits.log_softmax(-1)[rows, tokens].sum(1).exp())


def drawn(logits: Tensor, length: int, count: int, generator: torch.Generator) -> Sample:
    """``count`` sequences sampled from a policy, each of the same weight."""
    p = logits.softmax(-1)
    row, tokens = torch.zeros(count, dtype=torch.long), []
    for _ in range(length):
        tokens.append(draw(p[row], generator))
        row = tokens[-1] + 1
    taken = torch.stack(tokens, dim=1)
    return Sample(taken, _before(taken), torch.full((count,), 1 / count, dtype=p.dtype))


def _before(tokens: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(tokens), 1, dtype=torch.long), tokens[:, :-1] + 1], dim=1)

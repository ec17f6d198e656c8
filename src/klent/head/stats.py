"""Types that every implementation of the head shares: inputs, outputs, and the precision of sums."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

NATS = math.log(2)  # of one bit: the fused kernels hold logits in bits, because exp2 is faster than exp
FLOOR = -1e30  # stands for -inf in the bias: exp is still exactly 0, and 0 * (z - m) is 0 instead of NaN


class LogitTransform(NamedTuple):
    """From a product of the head to a logit of the softmax: ``cap(scale * product) / temperature``."""

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None
    """``cap(x) = softcap * tanh(x / softcap)``; None leaves ``x`` as it is."""


class Head(NamedTuple):
    """What turns hidden states into distributions: ``softmax(cap(scale (W h + b)) / temperature)``.

    Attributes:
        hidden: last hidden states, ``[N, H]``.
        weight: output embedding, ``[V, H]``.
        bias: ``[V]`` or None.
        transform: temperature, scale and soft cap.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    transform: LogitTransform = LogitTransform()

    def first(self, size: int) -> "Head":
        """The same head over the first ``size`` tokens of the vocabulary."""
        if size == len(self.weight):
            return self
        bias = None if self.bias is None else self.bias[:size]
        return self._replace(weight=self.weight[:size], bias=bias)


class _Pair(NamedTuple):
    logp: Tensor
    entropy: Tensor | None


class TokenStats(_Pair):
    """The numbers per token that objectives work with, in the shape of ``target``; it unpacks as the first two.

    Attributes:
        logp: log-probability of the target, nats.
        entropy: of the whole distribution, nats; None where it was not asked for.
        collision: ``sum_v p_v^2``, the probability that two draws agree, without gradient; None where not asked for.
        collision_logp: ``sum_v p_v^2 log p_v``, nats, without gradient; None where not asked for.
    """

    collision: Tensor | None = None
    collision_logp: Tensor | None = None

    def __new__(
        cls,
        logp: Tensor,
        entropy: Tensor | None,
        collision: Tensor | None = None,
        collision_logp: Tensor | None = None,
    ) -> "TokenStats":
        stats = super().__new__(cls, logp, entropy)
        stats.collision, stats.collision_logp = collision, collision_logp
        return stats


def accumulation_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """float32 for everything narrower, float64 as soon as one of the two is float64."""
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)

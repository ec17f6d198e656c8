"""What every implementation of the head is asked, what it returns, and the precision in which it adds up."""

from typing import NamedTuple

import torch
from torch import Tensor


class Shape(NamedTuple):
    """What becomes of a product of the head before the softmax: ``cap(scale * product) / temperature``."""

    temperature: float = 1.0
    scale: float = 1.0
    softcap: float | None = None
    """``cap(x) = softcap * tanh(x / softcap)``; None leaves ``x`` as it is."""


class TokenStats(NamedTuple):
    """The two numbers per token that objectives work with, nats, in the shape of ``target``."""

    logp: Tensor
    """Log-probability of the target."""
    entropy: Tensor | None
    """Entropy of the whole distribution; None where it was not asked for."""


def accumulation_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """float32 for everything narrower, float64 as soon as one of the two is float64."""
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)

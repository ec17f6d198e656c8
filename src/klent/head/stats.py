"""What every implementation of the head returns, and the precision in which it adds up."""

from typing import NamedTuple

import torch
from torch import Tensor


class TokenStats(NamedTuple):
    """The two numbers per token that objectives work with, nats, in the shape of ``target``."""

    logp: Tensor
    """Log-probability of the target."""
    entropy: Tensor | None
    """Entropy of the whole distribution; None where it was not asked for."""


def accumulation_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """float32 for everything narrower, float64 as soon as one of the two is float64."""
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)

"""The definition of the token statistics in plain torch: it holds all [N, V] logits. Slow, and the oracle."""

import torch
from torch import Tensor

from klent.head.stats import Shape, TokenStats, accumulation_dtype


def token_stats_reference(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, shape: Shape, entropy: bool
) -> TokenStats:
    """``log_softmax`` at the target and ``-sum p log p``, differentiated by autograd."""
    dtype = accumulation_dtype(hidden, weight)
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    logits = logits * shape.scale
    if shape.softcap is not None:
        logits = torch.tanh(logits / shape.softcap) * shape.softcap
    logp = torch.log_softmax(logits / shape.temperature, dim=-1)
    at_target = logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return TokenStats(at_target, None)
    finite = logp.masked_fill(logp == -torch.inf, 0.0)  # a word masked out by the bias: 0 log 0 = 0
    return TokenStats(at_target, -(logp.exp() * finite).sum(-1))

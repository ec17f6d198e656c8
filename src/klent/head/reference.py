"""The definition of the token statistics in plain torch: slow, holds all [N, V] logits, and is the oracle."""

import torch
from torch import Tensor

from klent.head.stats import Head, TokenStats, accumulation_dtype


def token_stats_reference(head: Head, target: Tensor, entropy: bool) -> TokenStats:
    """``log_softmax`` at the target and ``-sum p log p``, differentiated by autograd."""
    dtype = accumulation_dtype(head.hidden, head.weight)
    temperature, scale, softcap = head.transform
    logits = head.hidden.to(dtype) @ head.weight.to(dtype).T
    if head.bias is not None:
        logits = logits + head.bias.to(dtype)
    logits = logits * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return full_logit_stats(logits, target, temperature, entropy=entropy)


def full_logit_stats(
    logits: Tensor, target: Tensor, temperature: float = 1.0, *, entropy: bool = True
) -> TokenStats:
    """Log-probability of each target and entropy of each distribution, from logits that a model has computed.

        logp = log_softmax(z / temperature)[target]        H = -sum p log p, where 0 log 0 = 0

    For models whose logits are not those of a fused head. Both outputs are differentiated by autograd.

    Args:
        logits: ``[..., V]``, float32 or float64; -inf is probability 0. Receives a gradient.
        target: ``[...]`` int64, in ``[0, V)``.
        temperature: dimensionless, > 0.
        entropy: False leaves the entropy out.

    Returns:
        ``TokenStats(logp, entropy)``, nats, in the shape of ``target``; ``entropy`` is None if not asked for.
        A target whose logit is -inf has log-probability -inf; the entropy stays finite.

    Example:
        >>> stats = full_logit_stats(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0]))
        >>> stats.logp, stats.entropy
        (tensor([-0.6931]), tensor([0.6931]))
    """
    logp = torch.log_softmax(logits / temperature, dim=-1)
    at_target = logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return TokenStats(at_target, None)
    finite = logp.masked_fill(logp == -torch.inf, 0.0)
    return TokenStats(at_target, -(logp.exp() * finite).sum(-1))

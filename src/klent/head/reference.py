"""The definition of the token statistics in plain torch: slow, holds all [N, V] logits, and is the oracle."""

import torch
from torch import Tensor

from klent.head.stats import Head, TokenStats, accumulation_dtype


def token_stats_reference(
    head: Head, target: Tensor, entropy: bool, collision: bool = False, keep_bytes: int = 0
) -> TokenStats:
    """``log_softmax`` at the target and ``-sum p log p``, differentiated by autograd, which keeps every logit."""
    dtype = accumulation_dtype(head.hidden, head.weight)
    temperature, scale, softcap = head.transform
    logits = head.hidden.to(dtype) @ head.weight.to(dtype).T
    if head.bias is not None:
        logits = logits + head.bias.to(dtype)
    logits = logits * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return full_logit_stats(logits, target, temperature, entropy=entropy, collision=collision)


def full_logit_stats(
    logits: Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    entropy: bool = True,
    collision: bool = False,
) -> TokenStats:
    """Log-probability of each target and entropy of each distribution, from logits that a model has computed.

        logp = log_softmax(z / temperature)[target]        H = -sum p log p, where 0 log 0 = 0
        collision = sum p^2        collision_logp = sum p^2 log p

    For models whose logits are not those of a fused head. Log-probability and entropy are differentiated by
    autograd; the collision's sums carry no gradient.

    Args:
        logits: ``[..., V]``, float32 or float64; -inf is probability 0. Receives a gradient.
        target: ``[...]`` int64, in ``[0, V)``.
        temperature: dimensionless, > 0.
        entropy: False leaves the entropy out.
        collision: True adds the two sums over squared probabilities.

    Returns:
        ``TokenStats``, nats, in the shape of ``target``; what was not asked for is None.
        A target whose logit is -inf has log-probability -inf; the entropy stays finite.

    Example:
        >>> stats = full_logit_stats(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0]))
        >>> stats.logp, stats.entropy
        (tensor([-0.6931]), tensor([0.6931]))
    """
    logp = torch.log_softmax(logits / temperature, dim=-1)
    at_target = logp.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    finite = logp.masked_fill(logp == -torch.inf, 0.0) if entropy or collision else logp
    squares: tuple[Tensor, ...] = ()
    if collision:
        p = logp.detach().exp()
        squares = p.square().sum(-1), (p.square() * finite.detach()).sum(-1)
    return TokenStats(at_target, -(logp.exp() * finite).sum(-1) if entropy else None, *squares)

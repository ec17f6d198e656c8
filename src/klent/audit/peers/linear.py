"""A scalar loss as a loss per token with the same gradient."""

import torch
from torch import Tensor


def per_token(total: Tensor, logp: Tensor, entropy: Tensor) -> Tensor:
    """The linear loss per token that has a scalar's gradient.

        Lₜ = c·(logpₜ - stop_gradient(logpₜ)) + e·(Hₜ - stop_gradient(Hₜ))
        c = d total/d logpₜ,   e = d total/d Hₜ

    Trainers average before they return. The gradient of their scalar still contains the share of each token:
    this loss has that gradient and the value 0.

    Args:
        total: the scalar, times what it was divided by.
        logp: log-probabilities that the scalar was computed from, ``[B, T]``, with gradient.
        entropy: entropies, likewise.

    Example:
        >>> import torch
        >>> logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss = per_token((logp**2 / 2).sum(), logp, torch.zeros(1, 2, requires_grad=True))
        >>> torch.autograd.grad(loss.sum(), logp)[0]
        tensor([[-1., -2.]])
    """
    slopes = torch.autograd.grad(total, (logp, entropy), allow_unused=True)
    loss = torch.zeros_like(logp)
    for slope, value in zip(slopes, (logp, entropy), strict=True):
        if slope is not None:
            loss = loss + slope * (value - value.detach())
    return loss

"""One position with a few actions, where every mean over actions is a sum."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def random_logits(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal logits, float64, fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def mean_gradient(
    loss: Callable[[Tensor], Tensor], logits: Tensor, behaviour: Tensor | None = None
) -> Tensor:
    """Gradient in the logits of a per-token loss, averaged exactly over sampled actions.

    Args:
        loss: per-token loss of log-probabilities ``[K, 1]``: each action is a row of one token.
        logits: logits of the policy, ``[K]``.
        behaviour: probabilities with which actions are sampled, ``[K]``; None is the policy itself. As in
            trainers, sampling is not differentiated.
    """
    logits = logits.detach().requires_grad_()
    logp = logits.log_softmax(-1)
    weight = logp.detach().exp() if behaviour is None else behaviour
    return torch.autograd.grad((weight.unsqueeze(1) * loss(logp.unsqueeze(1))).sum(), logits)[0]


def gradient(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Gradient in the logits of a function of all log-probabilities."""
    logits = logits.detach().requires_grad_()
    return torch.autograd.grad(objective(logits.log_softmax(-1)), logits)[0]


def relative_error(estimate: Tensor, true: Tensor) -> float:
    """Length of the difference over the length of the true vector."""
    return float((estimate - true).norm() / true.norm())


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def draw(p: Tensor, generator: torch.Generator) -> Tensor:
    """One action for each row of probabilities ``[..., K]``."""
    u = torch.rand(p.shape[:-1], generator=generator, dtype=p.dtype).unsqueeze(-1)
    return inverted(p, u).squeeze(-1)


def draw_groups(p: Tensor, size: int, generator: torch.Generator, arms: int = 1) -> Tensor:
    """``size`` actions for each row of ``[N, ..., K]``, ``[N, ..., size]``, as :func:`draw` takes from repeated rows.

    N holds ``arms`` parts of the same shape, which are drawn with the same numbers.
    """
    u = torch.rand(len(p) // arms, *p.shape[1:-1], size, generator=generator, dtype=p.dtype)
    return inverted(p, u.repeat(arms, *[1] * (u.dim() - 1)))


def inverted(p: Tensor, u: Tensor) -> Tensor:
    """The actions where the cumulative sums of rows ``[..., K]`` reach numbers ``[..., n]`` between 0 and 1."""
    return torch.searchsorted(p.cumsum(-1), u).clamp(max=p.shape[-1] - 1)

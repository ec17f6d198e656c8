"""The term that holds the policy to its target: the divergence of each action, as the policy computes it."""

import torch
from torch import Tensor

from klent.objectives import TokenLoss
from klent.training.term import Term


def distill(divergence: Tensor, mask: Tensor, *, coef: float) -> TokenLoss:
    """``coef * divergence`` per action, ``[B, T]``; the divergence carries the gradient, exactly."""
    loss = torch.where(mask, coef * divergence, 0.0)
    return TokenLoss(loss, {"distill": (divergence.detach()[mask].sum(), mask.sum())})


def distill_term(coef: float) -> Term:
    """The term of ``rollout.mixture.distill``; it is exact on the tokens as they are, so no weight touches it."""
    return Term("distill", distill, {"coef": coef}, frozenset({"divergence", "mask"}), weighted=False)

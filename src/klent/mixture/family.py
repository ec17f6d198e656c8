"""The mixtures of one pair of rows as an exponential family: what a sweep over the vocabulary computes."""

from typing import NamedTuple

import torch
from torch import Tensor

from klent.mixture.geometric import in_working_precision


class Sweep(NamedTuple):
    """What one pass over the rows computes at ``s = 1 - alpha``; ``[R]`` each, float64, nats.

    Attributes:
        log_z: log Σ policy^(1-s)·target^s.
        mean: mean under q of l = log target - log policy: the derivative of ``log_z``.
        variance: variance of l under q: its second derivative.
        entropy: of q.
        slope: derivative of ``entropy`` in s.
    """

    log_z: Tensor
    mean: Tensor
    variance: Tensor
    entropy: Tensor
    slope: Tensor


class Family:
    """All mixtures of two rows on the tokens that both give some probability.

    Args:
        logits_policy, logits_target: ``[R, V]``.

    Attributes:
        log_policy: log-probabilities of the policy, ``[R, V]``; -inf outside the common support in ``base``.
        ratio: l = log target - log policy, 0 outside the common support.
        shared: rows with a common token, ``[R]`` bool.
        covered: rows whose policy has no token that the target lacks, ``[R]`` bool.
    """

    def __init__(self, logits_policy: Tensor, logits_target: Tensor) -> None:
        policy, target = in_working_precision(logits_policy, logits_target)
        self.log_policy, log_target = policy.log_softmax(-1), target.log_softmax(-1)
        common = self.log_policy.isfinite() & log_target.isfinite()
        self.shared = common.any(-1)
        self.covered = (common | ~self.log_policy.isfinite()).all(-1)
        # A row without a common token is computed as if it were the policy twice; the caller overrules it.
        common |= ~self.shared.unsqueeze(-1) & self.log_policy.isfinite()
        self.base = self.log_policy.masked_fill(~common, -torch.inf)
        self.ratio = torch.where(common & log_target.isfinite(), log_target - self.log_policy, 0.0)

    def log_weights(self, s: Tensor) -> Tensor:
        """log(policy^(1-s)·target^s), ``[R, V]``; any s, also outside [0, 1]."""
        return torch.addcmul(self.base, s.to(self.base.dtype).unsqueeze(-1), self.ratio)

    def log_q(self, s: Tensor) -> Tensor:
        """The mixture, normalised, ``[R, V]``."""
        return self.log_weights(s).log_softmax(-1)

    def sweep(self, s: Tensor) -> Sweep:
        """One pass over all rows."""
        weights = self.log_weights(s)
        top = weights.amax(-1, keepdim=True)
        mass = (weights - top).exp()
        total = mass.sum(-1, keepdim=True)
        q = mass / total
        log_z = (top + total.log())[:, 0]
        mean = (q * self.ratio).sum(-1)
        centred = self.ratio - mean.unsqueeze(-1)
        variance = (q * centred.square()).sum(-1)
        surprise = -(weights - log_z.unsqueeze(-1)).clamp_min(-1e30)
        entropy = (q * surprise).sum(-1)
        slope = (q * centred * surprise).sum(-1)
        return Sweep(*(value.double() for value in (log_z, mean, variance, entropy, slope)))

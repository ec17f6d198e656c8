"""The distribution of one action that is a vector: a Gaussian with independent coordinates."""

import math
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from klent.objectives import gaussian_kl, gaussian_logp


class ActionDistribution(Protocol):
    """What a policy of vectors draws an action from, for N actions at once."""

    def draw(self, noise: Tensor) -> Tensor:
        """The actions that standard normal ``noise`` ``[N, A]`` becomes, ``[N, A]``."""
        ...

    def logp(self, action: Tensor) -> Tensor:
        """Log-density, summed over coordinates, nats, ``[N]``, differentiable in the distribution."""
        ...

    def entropy(self) -> Tensor:
        """Differential entropy, nats, ``[N]``; it may be below 0."""
        ...

    def kl(self, other: Self) -> Tensor:
        """KL(self ‖ other), exact, nats, ``[N]``."""
        ...


class Gaussian(NamedTuple):
    """N(mean, std²), coordinate by coordinate.

    Attributes:
        mean: ``[N, A]``.
        std: positive, of a shape that broadcasts to it: ``[N, 1]`` is isotropic.

    >>> import torch
    >>> unit = Gaussian(torch.zeros(1, 2), torch.ones(1, 1))
    >>> unit.logp(torch.tensor([[0.0, 1.0]])), unit.entropy(), unit.kl(Gaussian(torch.ones(1, 2), torch.ones(1, 1)))
    (tensor([-2.3379]), tensor([2.8379]), tensor([1.]))
    """

    mean: Tensor
    std: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """``mean + std * noise``, ``[N, A]``."""
        return self.mean + self.std * noise

    def logp(self, action: Tensor) -> Tensor:
        """:func:`klent.objectives.gaussian_logp`, ``[N]``."""
        return gaussian_logp(action, self.mean, self.std)

    def entropy(self) -> Tensor:
        """``sum_i log(std_i) + log(2 pi e)/2``, nats, ``[N]``."""
        one = self.std.log() + (math.log(2 * math.pi) + 1) / 2
        return one.expand_as(self.mean).sum(dim=-1)

    def kl(self, other: "Gaussian") -> Tensor:
        """:func:`klent.objectives.gaussian_kl`, ``[N]``."""
        return gaussian_kl(self.mean, self.std, other.mean, other.std)

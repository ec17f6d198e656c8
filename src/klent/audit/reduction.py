"""The reduction is a part of a loss: what averaging over tokens or over sequences does to its gradient.

A mean over sequences divides each row by its own length; a mean over tokens divides a batch by the number of
tokens that happened to be in it. Only a constant divisor leaves the direction of the sum alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from klent.audit.call import Loss, LossProblem
from klent.audit.expectation import expected_gradient, row_gradients
from klent.audit.worlds import Scene, sample, unequal_lengths
from klent.objectives import reduce_tokens

#: what ``certify`` takes; a callable gets the loss ``[B, T]``, 0 off the mask, and the mask, and returns a scalar
Reduce = Literal["tokens", "sequences", "constant"] | Callable[[Tensor, Tensor], Tensor]
NAMES: tuple[Literal["tokens", "sequences", "constant"], ...] = ("tokens", "sequences", "constant")
#: numbers of completions in a batch for which the bias of a mean over tokens is computed
BATCHES = (2, 16, 64)
#: an expected gradient below this share of a single sample's is zero
ZERO = 1e-8


@dataclass(frozen=True)
class Reduction:
    """What a reduction leaves of the gradient of the sum over tokens, where completions differ in length.

    Attributes:
        over: ``tokens``, ``sequences``, ``constant``, or the name of a function.
        unexplained: ``on_policy``, ``off_policy`` -> the share of the reduced gradient that is no multiple of the
            gradient of the sum, with one multiple for all worlds; for ``tokens`` as the batch grows.
        batches: for ``tokens``, completions in a batch -> that share on-policy; empty if the rows of the loss
            depend on each other.
    """

    over: str
    unexplained: Mapping[str, float] = field(default_factory=dict)
    batches: Mapping[int, float] = field(default_factory=dict)


def reduced(loss: Loss, reduce: Reduce | None) -> Loss:
    """A loss with its reduction, so that its gradient is that of a completion, or of two for a function.

    Raises:
        LossProblem: there is no such reduction.
    """
    if callable(reduce):
        return replace(loss, reduce=reduce, by_row=False, rows=2)
    if reduce is None or reduce in ("constant", "tokens"):
        return loss
    if reduce == "sequences":
        return replace(loss, reduce=_sum_of_means)
    raise LossProblem(f"cannot be reduced over {reduce!r}; it is one of {', '.join(NAMES)}, or a function")


def compare(loss: Loss, reduce: Reduce | None) -> Reduction | None:
    """How the gradient under a reduction differs from that of the sum over tokens; None without a reduction."""
    if reduce is None:
        return None
    over = reduce if isinstance(reduce, str) else getattr(reduce, "__name__", type(reduce).__name__)
    other = reduced(loss, reduce)
    shares = {}
    for case in ("on_policy", "off_policy"):
        scenes = _scenes(off_policy=case == "off_policy", few=other.rows == 2)
        shares[case] = 0.0 if other is loss else _unexplained(_joined(other, scenes), _joined(loss, scenes))
    batches = {}
    if reduce == "tokens" and loss.rows is None:
        scenes = _scenes(off_policy=False, few=False)
        whole = _joined(loss, scenes)
        batches = {size: _unexplained(_of_batches(loss, scenes, size), whole) for size in BATCHES}
    return Reduction(over, shares, batches)


def _sum_of_means(loss: Tensor, mask: Tensor) -> Tensor:
    """Each row divided by its own length."""
    return reduce_tokens(loss, mask, over="sequences", denominator=1.0)


def _scenes(*, off_policy: bool, few: bool) -> list[Scene]:
    scenes = unequal_lengths()[:2] if few else unequal_lengths()
    return [scene if off_policy else scene.on_policy() for scene in scenes]


_Joined = tuple[Tensor, float]


def _joined(loss: Loss, scenes: list[Scene]) -> _Joined:
    """Expected gradients of several worlds, concatenated, and the size of a single sample's."""
    found = [expected_gradient(loss, scene) for scene in scenes]
    return torch.cat([each.gradient for each in found]), sum(each.scale**2 for each in found) ** 0.5


def _unexplained(gradient: _Joined, whole: _Joined) -> float:
    """The share of a gradient that no multiple of another explains."""
    (one, scale), (other, other_scale) = gradient, whole
    if one.norm() <= ZERO * scale:
        return 0.0
    if other.norm() <= ZERO * other_scale:
        return 1.0
    weight = (one @ other) / (other @ other)
    return float((one - weight * other).norm() / one.norm())


def _of_batches(loss: Loss, scenes: list[Scene], size: int) -> _Joined:
    """Expected gradient of a mean over the tokens of ``size`` independent completions, times their mean length.

    Rows are alike, so it is size·E[gradient of one / (its length + that of the others)], and the length of the
    others is a sum of independent ones.
    """
    gradients = []
    for scene in scenes:
        listed = sample(scene)
        lengths = listed.streams["mask"].sum(dim=1)
        of_one = torch.zeros(int(lengths.max()) + 1, dtype=torch.float64)
        of_one.index_add_(0, lengths, listed.probability)
        others = torch.ones(1, dtype=torch.float64)
        for _ in range(size - 1):
            others = _convolved(others, of_one)
        total = lengths[:, None] + torch.arange(len(others))
        inverse = (others / total).sum(dim=1)  # E[1 / (own length + that of the others)]
        mean = listed.probability @ lengths.double()
        gradients.append(size * mean * ((listed.probability * inverse) @ row_gradients(loss, scene)))
    return torch.cat(gradients), _joined(loss, scenes)[1]


def _convolved(one: Tensor, other: Tensor) -> Tensor:
    """Distribution of the sum of two independent counts."""
    total = torch.zeros(len(one) + len(other) - 1, dtype=one.dtype)
    for count, probability in enumerate(other):
        total[count : count + len(one)] += probability * one
    return total

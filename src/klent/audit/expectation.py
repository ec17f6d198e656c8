"""The expected gradient of a loss: the gradients at all samples, weighted by their probabilities."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from klent.audit.call import Loss, LossProblem
from klent.audit.worlds import Sample, Scene, sample


@dataclass(frozen=True)
class Expectation:
    """The mean of the gradient of a loss, and its variance.

    Attributes:
        gradient: expected gradient of the loss of a completion, summed over its tokens, ``[P]``.
        variance: variance of the gradient of one completion, summed over parameters.
        scale: root mean square norm of the gradient of one completion.
        dtype: dtype of the loss.
    """

    gradient: Tensor
    variance: float
    scale: float
    dtype: torch.dtype


def expected_gradient(loss: Loss, scene: Scene) -> Expectation:
    """Sum over all completions of their probability times the gradient of the loss on them.

    A loss whose ``rows`` is 2 is instead given every pair of completions, drawn independently.

    Raises:
        LossProblem: the loss cannot be evaluated or its gradient is not finite.
    """
    listed = sample(scene)
    gradients, weight, dtype = _pairs(loss, listed) if loss.rows == 2 else _rows(loss, listed)
    if not gradients.isfinite().all():
        kind = "NaN" if gradients.isnan().any() else "inf"
        raise LossProblem(f"has a gradient that is {kind}, though its values are finite")
    mean = weight @ gradients
    size = 2 if loss.rows == 2 else 1  # the mean of two has half the variance of one
    variance = (weight @ (gradients - mean).square().sum(dim=1)).item() * size
    return Expectation(mean, variance, (variance + mean.square().sum().item()) ** 0.5, dtype)


def _rows(loss: Loss, listed: Sample) -> tuple[Tensor, Tensor, torch.dtype]:
    slopes = loss.slopes(listed.streams)
    return _in_parameters(listed, slopes.logp, slopes.entropy), listed.probability, slopes.dtype


def _pairs(loss: Loss, listed: Sample) -> tuple[Tensor, Tensor, torch.dtype]:
    """Gradient of the mean loss of two completions, for each pair of them."""
    pairs = list(itertools.product(range(len(listed.probability)), repeat=2))
    pair_slopes = [
        loss.slopes({name: stream[list(pair)] for name, stream in listed.streams.items()}) for pair in pairs
    ]
    index = torch.tensor(pairs)
    gradients = sum(
        _in_parameters(
            _take(listed, index[:, member]),
            torch.stack([slopes.logp[member] for slopes in pair_slopes]),
            torch.stack([slopes.entropy[member] for slopes in pair_slopes]),
        )
        for member in (0, 1)
    )
    assert isinstance(gradients, Tensor)
    return gradients / 2, listed.probability[index].prod(dim=1), pair_slopes[0].dtype


def _in_parameters(listed: Sample, logp: Tensor, entropy: Tensor) -> Tensor:
    """The chain rule: from slopes per token, ``[B, T]``, to the gradient of each row, ``[B, P]``."""
    mask = listed.streams["mask"]
    logp, entropy = torch.where(mask, logp, 0.0), torch.where(mask, entropy, 0.0)
    return torch.einsum("bt,btp->bp", logp, listed.score) + torch.einsum(
        "bt,btp->bp", entropy, listed.entropy_slope
    )


def _take(listed: Sample, rows: Tensor) -> Sample:
    return Sample(
        {name: stream[rows] for name, stream in listed.streams.items()},
        listed.probability[rows],
        listed.score[rows],
        listed.entropy_slope[rows],
    )

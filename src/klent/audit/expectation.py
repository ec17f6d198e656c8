"""The expected gradient of a loss: the gradients at all samples, weighted by their probabilities."""

import itertools
from collections.abc import Mapping
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


def row_gradients(loss: Loss, scene: Scene) -> Tensor:
    """Gradient of the loss of each completion of a scene, ``[n, P]``."""
    return _rows(loss, sample(scene))[0]


def _rows(loss: Loss, listed: Sample) -> tuple[Tensor, Tensor, torch.dtype]:
    slopes = loss.slopes(listed.streams)
    return _in_parameters(listed, slopes.of), listed.probability, slopes.dtype


def _pairs(loss: Loss, listed: Sample) -> tuple[Tensor, Tensor, torch.dtype]:
    """Gradient of the mean loss of two completions (or of a function of both), for each pair of them."""
    pairs = list(itertools.product(range(len(listed.probability)), repeat=2))
    pair_slopes = [
        loss.slopes({name: stream[list(pair)] for name, stream in listed.streams.items()}) for pair in pairs
    ]
    index = torch.tensor(pairs)
    gradients = sum(
        _in_parameters(
            _take(listed, index[:, member]),
            {
                name: torch.stack([slopes.of[name][member] for slopes in pair_slopes])
                for name in pair_slopes[0].of
            },
        )
        for member in (0, 1)
    )
    assert isinstance(gradients, Tensor)
    return (
        gradients / 2 if loss.by_row else gradients,
        listed.probability[index].prod(dim=1),
        pair_slopes[0].dtype,
    )


def _in_parameters(listed: Sample, slopes: Mapping[str, Tensor]) -> Tensor:
    """The chain rule: from slopes per token, ``[B, T]``, to the gradient of each row, ``[B, P]``."""
    mask = listed.streams["mask"]
    parts = [
        torch.einsum("bt,btp->bp", torch.where(mask, slope, 0.0), listed.slope[name])
        for name, slope in slopes.items()
    ]
    return torch.stack(parts).sum(dim=0)


def _take(listed: Sample, rows: Tensor) -> Sample:
    return Sample(
        {name: stream[rows] for name, stream in listed.streams.items()},
        listed.probability[rows],
        {name: slope[rows] for name, slope in listed.slope.items()},
    )

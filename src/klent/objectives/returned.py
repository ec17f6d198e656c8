"""What a loss of a user's returned, read as a TokenLoss: for checks and for training alike."""

from collections.abc import Mapping

import torch
from torch import Tensor

from klent.objectives.types import TokenLoss


def as_token_loss(returned: object) -> TokenLoss:
    """What a loss returned: a ``TokenLoss``, the loss per token alone, or a pair of loss and metrics.

    Raises:
        TypeError: anything else, in words that follow the function's name.

    >>> as_token_loss(torch.ones(1, 2))
    TokenLoss(loss=tensor([[1., 1.]]), metrics={})
    >>> as_token_loss((torch.ones(1, 2), {"ratio": (3.0, 2)})).metrics
    {'ratio': (tensor(3.), tensor(2))}
    """
    loss, metrics = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"returned {type(returned).__name__}, not a tensor: return one loss per token, [B, T], or a TokenLoss"
        )
    if not isinstance(metrics, Mapping):
        raise TypeError(f"returned metrics as {type(metrics).__name__}; return a dict, name -> (sum, count)")
    return TokenLoss(loss, {str(name): _sum_and_count(str(name), value) for name, value in metrics.items()})


def _sum_and_count(name: str, value: object) -> tuple[Tensor, Tensor]:
    pair = value if isinstance(value, tuple | list) else ()
    numbers = [torch.as_tensor(part).detach() for part in pair if isinstance(part, Tensor | int | float)]
    if len(pair) != 2 or len(numbers) != 2 or any(number.numel() != 1 for number in numbers):
        raise TypeError(
            f"returned the metric `{name}` as {type(value).__name__}; return (sum, count), scalars"
        )
    return numbers[0], numbers[1]

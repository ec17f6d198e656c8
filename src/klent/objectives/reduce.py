"""From a loss per token to a number: the only place that averages a loss."""

import math
from typing import Literal

import torch
from torch import Tensor

from klent.objectives.checks import check_choice, check_number, check_tokens
from klent.objectives.kinds import reduction
from klent.objectives.masking import on_mask

__all__ = ["reduce_tokens"]


@reduction
def reduce_tokens(
    loss: Tensor,
    mask: Tensor,
    *,
    over: Literal["tokens", "sequences", "constant"] = "tokens",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Average a per-token loss.

        tokens      Σᵢₜ Lᵢₜ / number of tokens
        sequences   Σᵢ (Σₜ Lᵢₜ / number of tokens in i) / number of sequences
        constant    Σᵢₜ Lᵢₜ / denominator

    ``tokens`` weighs every token alike, so a long sequence weighs more; ``sequences`` weighs every sequence
    alike, so a token of a long one weighs less; ``constant`` leaves lengths alone.

    Args:
        loss: a loss per token, ``[B, T]``; receives the gradient. A row is one whole sequence.
        mask: True where a token counts, ``[B, T]`` bool.
        over: which of the three.
        denominator: what to divide by where this call sees only a part of the step: the tokens, or the
            sequences (rows with at least one token), of the whole step. The parts then add up to the whole.
            None counts those of this call; ``constant`` has nothing to count and needs a number. A tensor
            stays on its device, so its sign is not checked.

    Returns:
        A scalar, of this call alone: nothing is summed over ranks. Where the mask selects nothing it is 0,
        and so is its gradient.

    Raises:
        TypeError: ``mask`` is not bool, ``loss`` not floating point or ``denominator`` not a number.
        ValueError: shapes differ, ``over`` is unknown, or ``denominator`` is missing, not scalar or not
            positive.

    Note:
        DAPO averages over tokens, GRPO over sequences, Dr. GRPO by a constant (completions times the largest
        length). A mean over micro-batches of their means is none of these: it depends on how the batch was
        cut.

    Example:
        >>> import torch
        >>> from klent.objectives import reduce_tokens
        >>> loss = torch.tensor([[1.0, 2.0, 3.0], [8.0, 0.0, 0.0]])
        >>> mask = torch.tensor([[True, True, True], [True, False, False]])
        >>> reduce_tokens(loss, mask, over="tokens")
        tensor(3.5000)
        >>> reduce_tokens(loss, mask, over="sequences")
        tensor(5.)
        >>> sum(reduce_tokens(loss[i:i+1], mask[i:i+1], denominator=4) for i in range(2))  # in two parts
        tensor(3.5000)

    References:
        Yu et al., DAPO, 2025, arXiv:2503.14476.
        Liu et al., Understanding R1-Zero-Like Training (Dr. GRPO), 2025, arXiv:2503.20783.
    """
    check_tokens(mask, loss=loss)
    check_choice("over", over, ("tokens", "sequences", "constant"))
    _check_denominator(denominator, over)
    (loss,) = on_mask(mask, loss)
    lengths = mask.sum(dim=1)
    if over == "sequences":
        total, count = (loss.sum(dim=1) / lengths.clamp(min=1)).sum(), (lengths > 0).sum()
    else:
        total, count = loss.sum(), lengths.sum()
    divisor = count if denominator is None else denominator
    if isinstance(divisor, Tensor):
        divisor = torch.where(divisor == 0, 1, divisor)  # nothing to average: 0 / 1, not 0 / 0
    return total / divisor


def _check_denominator(denominator: float | Tensor | None, over: str) -> None:
    if denominator is None:
        if over == "constant":
            raise ValueError("denominator is None, expected a number: over='constant' has nothing to count")
    elif isinstance(denominator, Tensor):
        if denominator.ndim != 0:
            raise ValueError(f"denominator has shape {list(denominator.shape)}, expected a scalar")
    else:
        check_number("denominator", denominator, 0, math.inf, ends="()")

"""The things done with a mask everywhere: hide what is off it, count what is on it, choose from it."""

import torch
from torch import Tensor


def on_mask(mask: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Each of ``values`` with 0 where ``mask`` is False.

    Done before any arithmetic: multiplied by the mask afterwards, an inf or NaN off the mask would still
    become a NaN in the loss, or in its gradient alone.
    """
    return tuple(torch.where(mask, value, 0.0) for value in values)


def metric(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of ``values`` (numbers or booleans) over ``mask``, and the number of tokens on it."""
    dtype = values.dtype if values.is_floating_point() else torch.float32
    (kept,) = on_mask(mask, values.detach().to(dtype))
    return kept.sum(), mask.sum().to(dtype)


def largest(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """The ``count`` tokens of ``mask`` (or all, if it has fewer) with the largest ``values``.

    Of equal values the earlier token (by row, then column) is chosen.
    """
    ranked = torch.where(mask, values.detach(), -torch.inf).flatten()
    order = ranked.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return mask & (rank < count).view_as(mask)


def drawn(mask: Tensor, generator: torch.Generator | None) -> Tensor:
    """A uniform number for each token on the mask; the padding does not change them."""
    draw = torch.rand(mask.numel(), generator=generator, device=mask.device, dtype=torch.float64)
    return draw[mask.flatten().cumsum(0) - 1].view_as(mask)  # the k-th token gets the k-th number


def share(fraction: float, count: Tensor) -> Tensor:
    """``fraction * count`` rounded up. In integers, as in floats 0.07 * 100 is above 7 and would give 8."""
    billionths = max(1, round(fraction * 10**9))
    return (count * billionths + 10**9 - 1) // 10**9

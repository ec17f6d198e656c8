"""Tensors of which each rank holds a part: rows of a weight, of its gradient, of what an optimizer remembers.

torch calls them DTensors. A tensor that is whole on every rank passes through each of these functions as it is, so
that nothing else has to know which of the two it holds.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class Part(NamedTuple):
    """What this rank holds of a tensor.

    Attributes:
        values: flat, ``[n]``; the tensor's own memory.
        first: the place of the first of them in the flattened whole.
    """

    values: Tensor
    first: int


def whole(tensor: Tensor) -> Tensor:
    """The tensor that the ranks hold together; every rank must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Part:
    """What this rank holds, and where in the whole it begins."""
    if not isinstance(tensor, DTensor):
        return Part(tensor.reshape(-1), 0)
    ranks, rows = tensor.device_mesh.size(), tensor.shape[0]
    before = min(tensor.device_mesh.get_local_rank() * -(-rows // ranks), rows)
    return Part(tensor.to_local().reshape(-1), before * (tensor.numel() // max(rows, 1)))


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every rank has, cut as ``like`` is; numbers that are no rows of it stay whole."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def collected(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The whole of each, on the CPU where it had to be put together; every rank must ask, with the same names.

    Args:
        tensors: by name.
        keep: False = only give this rank's parts to the others.
    """
    kept = {}
    for name, tensor in tensors.items():
        put_together = whole(tensor)
        if keep:
            kept[name] = put_together if put_together is tensor else put_together.cpu()
    return kept

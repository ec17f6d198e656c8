"""Tensors of which each rank holds a part: rows of a weight, of its gradient, of what an optimizer remembers.

torch calls them DTensors. A tensor that is whole on every rank passes through each of these functions as it is, so
that nothing else has to know which of the two it holds.
"""

from typing import NamedTuple

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
    """A whole tensor, which every rank has, cut as ``like`` is; what is cut, and numbers that are no rows, stay."""
    if isinstance(value, DTensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)

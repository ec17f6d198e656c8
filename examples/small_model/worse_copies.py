"""Copies of a model that a sampler might hold: in bfloat16, or with the weights of its layers rounded to few bits."""

import copy

import torch
from torch import Tensor, nn

COPIES = ("bfloat16", "int4", "int3")


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest multiples of one step per output, ``2^(bits - 1) - 1`` of them on each side of 0.

    >>> rounded(torch.tensor([[3.0, -0.9, 0.4], [0.0, 30.0, 11.0]]), bits=3)
    tensor([[ 3., -1.,  0.],
            [ 0., 30., 10.]])
    """
    step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / step).round() * step


def worse_copy(model: nn.Module, how: str) -> nn.Module:
    """A copy of the model, as ``how`` says; embedding and head are not rounded."""
    other = copy.deepcopy(model).eval()
    if how == "bfloat16":
        other = other.to(torch.bfloat16)
    take_over(other, model, how)
    return other


@torch.no_grad()
def take_over(other: nn.Module, model: nn.Module, how: str) -> None:
    """Give a copy the model's weights as they are now."""
    other.load_state_dict(model.state_dict())
    if how.startswith("int"):
        for name, layer in other.named_modules():
            if isinstance(layer, nn.Linear) and name != "lm_head":
                layer.weight.copy_(rounded(layer.weight, int(how[3:])))

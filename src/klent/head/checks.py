"""What the head refuses: tensors that do not fit together, targets outside the vocabulary, numbers out of range."""

import math

import torch
from torch import Tensor

from klent.head.stats import LogitTransform


def check_inputs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    vocabulary: int | None = None,
) -> None:
    """Refuse tensors that do not fit; ``weight`` may be some rows of a larger ``vocabulary``."""
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is not None and not x.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, not {x.dtype}")
    if target.dtype != torch.int64:
        raise TypeError(f"target must be int64 token ids, not {target.dtype}")
    if hidden.dim() < 1 or hidden.shape[:-1] != target.shape:
        raise ValueError(
            f"hidden [..., H] and target [...] must agree: got {list(hidden.shape)} and {list(target.shape)}"
        )
    size = weight.shape[0] if vocabulary is None else vocabulary
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or size == 0:
        raise ValueError(
            f"weight must be [V, H] with H = {hidden.shape[-1]} as in hidden: got {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V] = [{weight.shape[0]}] as in weight: got {list(bias.shape)}")
    if target.numel():
        low, high = (int(x) for x in target.aminmax())
        if low < 0 or high >= size:
            raise ValueError(
                f"target holds {low if low < 0 else high}, outside the vocabulary [0, {size}): "
                "select the positions to train on before the head; padding and -100 are not skipped"
            )


def check_transform(transform: LogitTransform) -> None:
    """Refuse a temperature, scale or soft cap that is no such number."""
    if not 0 < transform.temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, not {transform.temperature!r}")
    if not 0 < abs(transform.scale) < math.inf:
        raise ValueError(f"scale must be a finite number other than 0, not {transform.scale!r}")
    if transform.softcap is not None and not 0 < transform.softcap < math.inf:
        raise ValueError(f"softcap must be a positive number or None, not {transform.softcap!r}")

"""Where a run's models are and what they compute in: what a recipe's ``device`` and ``precision`` come to here."""

from typing import TypedDict

import torch

from klent.config import Precision
from klent.models.device import find_device

BFLOAT16_SINCE = (8, 0)  # the compute capability whose tensor cores multiply bfloat16; older GPUs emulate it


class Placement(TypedDict):
    """Arguments of :func:`klent.models.load.load_policy`."""

    device: str
    dtype: str


def placement(device: str, precision: Precision) -> Placement:
    """The device and the type that a run computes with.

    Raises:
        ModelError: this machine has no such device.
    """
    torch.set_float32_matmul_precision("highest")  # float32 means float32: no TF32, whoever switched it on
    return _on(find_device(device), precision)


def viewing(device: str, precision: Precision) -> Placement:
    """The same for a look at what a run made, which need not happen on the machine that trained it."""
    return _on(find_device("cpu" if device == "cpu" else "auto"), precision)


def _on(device: torch.device, precision: Precision) -> Placement:
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels and recordings run on the current device
    return {"device": str(device), "dtype": computes_in(precision, device)}


def computes_in(precision: Precision, device: torch.device) -> str:
    """``float32`` or ``bfloat16``: the type of the model's arithmetic on a device.

    >>> computes_in(Precision(), torch.device("cpu"))
    'float32'
    """
    if precision.compute != "auto":
        return precision.compute
    multiplies = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE
    return "bfloat16" if multiplies else precision.weights


def says(device: str, precision: Precision) -> str:
    """Device and precision in words, for the plan of a run; looks at no device."""
    where = "the GPU if there is one, else the CPU" if device == "auto" else device
    if precision.compute == "auto" and precision.weights == "float32" and device != "cpu":
        return f"device: {where}; float32 weights, computed with in bfloat16 on a GPU"
    compute = precision.weights if precision.compute == "auto" else precision.compute
    apart = "" if compute == precision.weights else f", computed with in {compute}"
    return f"device: {where}; {precision.weights} weights{apart}"

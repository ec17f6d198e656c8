"""Which device a model runs on."""

from typing import TYPE_CHECKING

from klent.errors import ModelError

if TYPE_CHECKING:
    import torch


def find_device(name: str = "auto") -> "torch.device":
    """The device of a name.

    Args:
        name: ``auto`` (the GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ModelError: no such device on this machine.

    Examples:
        >>> find_device("cpu")
        device(type='cpu')
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is not one of auto, cpu, cuda, cuda:N") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelError(
            f"device {name!r} is not on this machine: {_seen(count)}. Use device=auto (the GPU if there is one) "
            "or device=cpu"
        )
    return device


def _seen(count: int) -> str:
    """What torch sees of GPUs, and why it sees none."""
    import torch

    if count:
        return f"it has {count} CUDA devices, cuda:0 to cuda:{count - 1}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA (for a GPU, install one with it)"
    return (
        "torch sees no CUDA device (nvidia-smi lists what the driver sees, CUDA_VISIBLE_DEVICES hides some)"
    )


def type_name(dtype: "torch.dtype") -> str:
    """A type of numbers as a recipe writes it.

    >>> import torch
    >>> type_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")

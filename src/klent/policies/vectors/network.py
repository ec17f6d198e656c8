"""What small networks share: layers made from a seed, and a folder with config.json and model.safetensors."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from klent.errors import ModelError, first_line
from klent.io.folders import whole_folder

Network = TypeVar("Network", bound=nn.Module)


def linear(before: int, after: int, generator: torch.Generator | None) -> nn.Linear:
    """A layer whose weights come from the generator, uniform within 1/sqrt(inputs) as torch's own."""
    layer = nn.utils.skip_init(nn.Linear, before, after)
    bound = 1 / math.sqrt(before)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    made: nn.Linear = layer
    return made


def save_network(network: nn.Module, config: Mapping[str, object], kind: str, folder: Path) -> None:
    """Write config.json and model.safetensors, whole or not at all.

    Args:
        network: whose weights are written.
        config: what config.json says of it.
        kind: its ``model_type``.
        folder: where to.

    Raises:
        ModelError: the folder cannot be written.
    """
    try:
        with whole_folder(folder) as scratch:
            text = json.dumps({"model_type": kind, **config}, indent=2)
            (scratch / "config.json").write_text(text + "\n", encoding="utf-8")
            weights = {
                name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
            }
            save_file(weights, scratch / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {first_line(error)}. No partial folder is left"
        ) from error


def load_network(
    folder: Path, kind: str, make: Callable[[dict[str, object]], Network], *, name: str, remedy: str
) -> Network:
    """The network of a folder that :func:`save_network` wrote.

    Args:
        folder: where it is.
        kind: the ``model_type`` that its config.json must have.
        make: the network of the other values, with any weights.
        name: of such a network, for messages: ``a denoiser``.
        remedy: what to do where the folder holds something else.

    Raises:
        ModelError: it is not such a folder, or its weights do not fit its config.json.
    """
    try:
        values = json.loads((folder / "config.json").read_bytes())
        found = values.pop("model_type", None)
        if found == kind:
            network = make(values)
            network.load_state_dict(load_file(folder / "model.safetensors"))
            return network
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError, AttributeError) as error:
        raise ModelError(f"cannot load {name} from {folder}: {first_line(error)}") from error
    raise ModelError(
        f"{folder} does not hold {name}: its config.json has model_type {found!r}, expected {kind!r}. {remedy}"
    )

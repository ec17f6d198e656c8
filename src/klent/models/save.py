"""Save a model as a plain Hugging Face folder, with a LoRA adapter merged into the written weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from klent.errors import ModelError, first_line
from klent.io.folders import whole_folder
from klent.models.pull import quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def save_model(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, config, tokenizer, chat template. Whole or not at all.

    A LoRA adapter is merged into the written weights, and saved by itself in ``folder/adapter``. The model in
    memory is not changed: its weights stay bit for bit what they were.

    Raises:
        ModelError: the folder cannot be written, such as on a full disk.
    """
    from safetensors import SafetensorError

    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    try:
        with quiet(), whole_folder(folder) as made:
            base.save_pretrained(made, state_dict=_merged_weights(base) if adapted else None)
            tokenizer.save_pretrained(made)
            if adapted:
                model.save_pretrained(made / "adapter")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {first_line(error)}. Nothing half-written is left; free "
            "some space or choose another folder"
        ) from error


def _merged_weights(base: Any) -> "dict[str, Tensor]":
    """Weights with the adapter added to them, under the names that they had before there was an adapter."""
    import torch
    from peft.tuners.lora import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): value
        for name, value in base.state_dict().items()
        if ".lora_" not in name
    }
    layers: list[tuple[str, Any]] = [
        (name, part) for name, part in base.named_modules() if isinstance(part, LoraLayer)
    ]
    with torch.no_grad():
        for name, layer in layers:
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = weight + layer.get_delta_weight("default").to(weight.dtype)
    return weights

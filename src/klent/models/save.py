"""Save a model as a plain Hugging Face folder, with a LoRA adapter merged into the written weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from klent.errors import ModelError, first_line
from klent.io.folders import whole_folder
from klent.models.adapter import merged_weights
from klent.models.device import type_name
from klent.models.pull import quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    dtype: str | None = None,
    adapter_too: bool = True,
    gguf: str | None = None,
    weights: "Mapping[str, Tensor] | None" = None,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a plain Hugging Face folder: safetensors, config, tokenizer, chat template. Whole or not at all.

    A LoRA adapter is merged into the written weights, and saved by itself in ``folder/adapter``. The model in
    memory is not changed: its weights stay the same, bit for bit.

    Args:
        model, tokenizer: what to write.
        folder: where to; an existing one is replaced.
        dtype: of the written weights, to which they are rounded once; None = the model's.
        adapter_too: whether an adapter is also saved by itself.
        gguf: a name to write ``model.gguf`` under too (:mod:`klent.models.gguf`); None = no such file.
        weights: of a model without an adapter, in place of what its ``state_dict`` says.
        texts: more files, such as a model card: name -> content.

    Raises:
        ModelError: the folder cannot be written, for example because the disk is full; or ``gguf`` of a model for
            which its layout is not known.
    """
    from safetensors import SafetensorError

    adapter = cast("PeftModel", model) if hasattr(model, "peft_config") else None
    base = model if adapter is None else cast("PreTrainedModel", adapter.get_base_model())
    try:
        with quiet(), whole_folder(folder) as scratch:
            given = dict(weights) if weights else None
            written = given if adapter is None else merged_weights(base)
            if dtype is not None:
                written = _cast(base, written, dtype)
            if gguf is not None:
                whole = base.state_dict() if written is None else written
                _write_gguf(base, whole, tokenizer, scratch, name=gguf)
            base.save_pretrained(scratch, state_dict=written)  # which empties the dictionary
            if dtype is not None:
                _write_dtype(scratch / "config.json", dtype)
            tokenizer.save_pretrained(scratch)
            for name, text in texts.items():
                (scratch / name).write_text(text, encoding="utf-8")
            if adapter is not None and adapter_too:
                adapter.save_pretrained(str(scratch / "adapter"))
                _sort_sets(scratch / "adapter" / "adapter_config.json", adapter)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {first_line(error)}. No partial folder is left; free some "
            "space or choose another folder"
        ) from error


def _write_gguf(
    base: "PreTrainedModel",
    weights: "Mapping[str, Tensor]",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    name: str,
) -> None:
    """The GGUF file, its matrices of the type that the weights have."""
    from klent.models.gguf import FILE, write_gguf

    kept = type_name(next(iter(weights.values())).dtype)
    write_gguf(base.config, weights, tokenizer, folder / FILE, name=name, dtype=kept)


def _cast(base: "PreTrainedModel", weights: "dict[str, Tensor] | None", dtype: str) -> "dict[str, Tensor]":
    """Weights of another type, those that are one in memory as one; what is no floating-point number stays."""
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    whole = base.state_dict() if weights is None else weights
    done: dict[tuple[int, torch.Size], Tensor] = {}
    for value in whole.values():
        place = value.data_ptr(), value.shape
        if place not in done:
            done[place] = value.to(wanted) if value.is_floating_point() else value
    return {name: done[value.data_ptr(), value.shape] for name, value in whole.items()}


def _write_dtype(config: Path, dtype: str) -> None:
    """The type of the written weights, in place of that of the model in memory."""
    values = json.loads(config.read_bytes())
    values["dtype"] = dtype
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sort_sets(file: Path, adapter: "PeftModel") -> None:
    """Order the lists that peft made of sets: theirs is that of the process's hash seed."""
    written = json.loads(file.read_bytes())
    sets = {
        key
        for config in adapter.peft_config.values()
        for key, v in vars(config).items()
        if isinstance(v, set)
    }
    ordered = {key: sorted(value) if key in sets else value for key, value in written.items()}
    file.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")

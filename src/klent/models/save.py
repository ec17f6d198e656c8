"""Save a model as a plain Hugging Face folder, with a LoRA adapter merged into the written weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from klent.errors import ModelError, first_line
from klent.io.folders import whole_folder
from klent.models.adapter import merged_weights
from klent.models.pull import quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, config, tokenizer, chat template. Whole or not at all.

    A LoRA adapter is merged into the written weights, and saved by itself in ``folder/adapter``. The model in
    memory is not changed: its weights stay the same, bit for bit.

    Raises:
        ModelError: the folder cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError

    adapter = cast("PeftModel", model) if hasattr(model, "peft_config") else None
    base = model if adapter is None else cast("PreTrainedModel", adapter.get_base_model())
    try:
        with quiet(), whole_folder(folder) as scratch:
            base.save_pretrained(scratch, state_dict=None if adapter is None else merged_weights(base))
            tokenizer.save_pretrained(scratch)
            if adapter is not None:
                adapter.save_pretrained(str(scratch / "adapter"))
                _sort_sets(scratch / "adapter" / "adapter_config.json", adapter)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {first_line(error)}. No partial folder is left; free some "
            "space or choose another folder"
        ) from error


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

"""LoRA adapters: put on a model for training, merged into its weights for saving."""

import warnings
from typing import TYPE_CHECKING, Protocol, cast

from klent.errors import ModelError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel


class LoraSettings(Protocol):
    """What an adapter is made from; `klent.config.Lora` is one."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def target_modules(self) -> str | tuple[str, ...]: ...


class _Layer(Protocol):
    def get_delta_weight(self, adapter: str) -> "Tensor": ...


def add_adapter(model: "PreTrainedModel", lora: LoraSettings, seed: int) -> "PreTrainedModel":
    """peft's wrapper of the model, whose own weights are frozen.

    Args:
        model: the base model; its layers are replaced in place.
        lora: what to add.
        seed: of the adapter's first weights. The global random state is left as it was.

    Raises:
        ModelError: peft is missing or refuses the settings.
    """
    import torch

    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ModelError("lora needs peft: pip install 'klent[lora]'") from error
    modules = lora.target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides by the rank; a float is as good
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )
    linear = {name.split(".")[-1] for name, part in model.named_modules() if type(part) is torch.nn.Linear}
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            wrapped = get_peft_model(model, config)
    except ValueError as error:
        reason = f"lora: {first_line(error)} Linear layers of this model: {', '.join(sorted(linear))}"
        raise ModelError(reason) from error
    _refuse_head(model)
    _refuse_unmergeable(model, linear)
    return cast("PreTrainedModel", wrapped)  # forwards to the model


def _refuse_head(model: "PreTrainedModel") -> None:
    """The head is read as one matrix: an adapter on it, or on an embedding that is tied to it, would not act."""
    from peft.tuners.lora import LoraLayer

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None)
    if isinstance(head, LoraLayer) or (tied and isinstance(embedding, LoraLayer)):
        part = (
            "the output head" if isinstance(head, LoraLayer) else "an embedding that is also the output head"
        )
        raise ModelError(
            f"lora.target_modules names {part}: log-probabilities are taken from the head's matrix alone, and "
            "the adapter would never learn. Remove it from target_modules"
        )


def _refuse_unmergeable(model: "PreTrainedModel", linear: "set[str]") -> None:
    """An adapter on a bare parameter, such as the stacked weights of experts, could be trained and not saved."""
    from peft.tuners.lora import LoraLayer

    names = {name.replace(".base_layer.", ".") for name in model.state_dict()}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and f"{name}.weight" not in names:
            raise ModelError(
                f"lora puts an adapter on {name}, which is no linear layer, and its weights cannot be merged for "
                f"saving. Name lora.target_modules among: {', '.join(sorted(linear))}"
            )


def merged_weights(base: "PreTrainedModel", dtype: "torch.dtype | None" = None) -> "dict[str, Tensor]":
    """Weights with the adapter added to them, under the names that they had before there was an adapter.

    Args:
        base: the model in which the adapter is.
        dtype: of the sums; None = that of the weights.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): value
        for name, value in base.state_dict().items()
        if ".lora_" not in name
    }
    with torch.no_grad():
        for name, layer in base.named_modules():
            if isinstance(layer, LoraLayer):
                weight = weights[f"{name}.weight"]
                delta = cast("_Layer", layer).get_delta_weight("default")
                # added in float32 and rounded once: a small delta rounded by itself loses digits that the sum has
                weights[f"{name}.weight"] = (weight.float() + delta.float()).to(dtype or weight.dtype)
    return weights


def merge_adapter(model: "PreTrainedModel", folder: str, *, source: str) -> "PreTrainedModel":
    """A model with a LoRA adapter of a folder merged into its weights.

    Args:
        model: the base model; it must not be used any more.
        folder: the adapter's.
        source: where the model came from, for messages.

    Raises:
        ModelError: peft is missing, or the folder holds no adapter of this model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("an adapter needs peft: pip install 'klent[lora]'") from error
    try:
        merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"cannot put the adapter {folder} on {source}: {first_line(error)}") from error
    return cast("PreTrainedModel", merged.eval())


def adapters_off(model: "PreTrainedModel") -> "Callable[[], AbstractContextManager[object]]":
    """A context in which a model with adapters is its base model."""
    return cast("PeftModel", model).disable_adapter

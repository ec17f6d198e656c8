"""What klent uses of a transformers causal language model, or of peft's wrapper around one, as types."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class TextConfig(Protocol):
    """The configuration of the language model, also inside a multimodal one."""

    vocab_size: int
    hidden_size: int
    _attn_implementation: str


class Config(Protocol):
    """The configuration of the whole model."""

    def get_text_config(self) -> TextConfig:
        """The part that describes the language model."""
        ...


class BodyOutput(Protocol):
    """What the layers return."""

    last_hidden_state: Tensor


class Output(Protocol):
    """What the whole model returns."""

    logits: Tensor


class Body(Protocol):
    """The model without its head."""

    def __call__(self, **inputs: object) -> BodyOutput:
        """Hidden states of the last layer, after the final norm."""
        ...


class OutputEmbedding(Protocol):
    """The head: ``weight`` ``[V, H]``, and a ``bias`` ``[V]`` in some models."""

    weight: Tensor


class CausalModel(Protocol):
    """The whole model."""

    training: bool

    @property
    def config(self) -> Config:
        """Its configuration."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights and hidden states."""
        ...

    @property
    def base_model(self) -> Body:
        """Without the head; of peft's wrapper, something else: use :func:`body_of`."""
        ...

    def __call__(self, **inputs: object) -> Output:
        """Logits of the next token at every position."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Its parameters by name."""
        ...

    def eval(self) -> object:
        """Switch dropout off."""
        ...

    def train(self, mode: bool) -> object:
        """Switch dropout on or off."""
        ...

    def get_output_embeddings(self) -> OutputEmbedding | None:
        """The head; None where the model has none of its own."""
        ...

    def get_input_embeddings(self) -> nn.Module | None:
        """What turns token ids into the first hidden states."""
        ...


def whole_model(model: CausalModel) -> Any:
    """The transformers model itself, also inside peft's wrapper, which only passes arguments on."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def reading_cache(model: CausalModel, cache: object) -> dict[str, Any]:
    """Arguments that make a model read and extend a cache.

    Newer transformers call it ``cache``, earlier ones ``past_key_values``, model by model.
    """
    inner: nn.Module = whole_model(model)
    return {_cache_argument(type(inner).forward): cache, "use_cache": True}


@functools.cache
def _cache_argument(forward: Callable[..., object]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def recomputes(model: CausalModel) -> bool:
    """Whether the model runs again in the backward pass (gradient or activation checkpointing)."""
    inner: nn.Module = whole_model(model)
    return any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())


def body_of(model: CausalModel) -> Body:
    """The model without its head; peft's layers live inside it, so peft's wrapper is not needed.

    ``base_model`` is a name that each class declares, and not always that of a part which exists: then it is the
    model itself, and the body is the part that is a model.
    """
    inner = whole_model(model)
    parts = [inner.base_model, *inner.children()]
    body: Body = next((x for x in parts if x is not inner and isinstance(x, PreTrainedModel)), inner)
    return body


def attention_window(model: CausalModel) -> int | None:
    """The sliding window of a model's attention, tokens; None where it looks at all of them."""
    config = model.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    return window if getattr(config, "use_sliding_window", True) else None

"""Attention kernels of klent: what all of them refuse, and how a transformers model is made to call one.

transformers calls attention functions by name, and passes every keyword argument of the model's call that it
does not know on to them. A kernel is such a function over tokens that are laid out in a way that no mask
tells; the layout travels as one of these arguments.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from transformers import AttentionInterface

from klent.policies.causal_lm.model import CausalModel

Layout = TypeVar("Layout")


class AttentionLayer(Protocol):
    """The module of the model that calls."""

    layer_idx: int


Attend = Callable[[AttentionLayer, Tensor, Tensor, Tensor, Layout, float], Tensor]
"""(layer, query [R, heads, L, D], key and value [R, K, L, D], layout, scaling) -> [R, L, heads, D]."""


class AttentionKernel(Generic[Layout]):
    """An attention function that computes scores and a softmax, and nothing else.

    Args:
        name: by which transformers knows it from now on.
        attend: the computation.
    """

    def __init__(self, name: str, attend: Attend[Layout]) -> None:
        self.name = name
        self.attend = attend
        AttentionInterface.register(name, self)

    def __call__(
        self,
        module: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        layout: Layout,
        dropout: float = 0.0,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **unused: object,
    ) -> tuple[Tensor, None]:
        """The interface of transformers: outputs ``[R, L, heads, D]``, and None for the weights.

        Raises:
            ValueError: the model's attention has a mask, dropout, a cap on its scores or sinks.
        """
        if attention_mask is not None or dropout or softcap is not None or s_aux is not None:
            raise ValueError(
                f"{self.name} is scores and a softmax: this model's attention also has a mask, dropout, a "
                "soft cap or sinks. Use its own attention."
            )
        return self.attend(module, query, key, value, layout, scaling), None


@contextmanager
def attending(
    model: CausalModel, kernel: AttentionKernel[Layout], layout: Layout
) -> Iterator[dict[str, object]]:
    """Within this block the model's attention is the kernel's.

    Args:
        model: the model; its own attention is put back at the end, also after an error.
        kernel: the attention to use.
        layout: what the kernel is told of the tokens.

    Yields:
        Keyword arguments that the model must be called with.
    """
    config = model.config.get_text_config()
    usual = config._attn_implementation
    config._attn_implementation = kernel.name
    try:
        yield {"layout": layout}
    finally:
        config._attn_implementation = usual

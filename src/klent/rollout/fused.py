"""A model's small operations in klent's kernels while it decodes: norms, rotary positions, gated products.

No list of model names: a module whose numbers are those of a kernel gets the kernel, one of another kind keeps its
own, and :func:`klent.rollout.recordable.graph_refusal` compares the whole model afterwards.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from klent.models.exact import close
from klent.policies.causal_lm.model import CausalModel, whole_model

ROTARY = "apply_rotary_pos_emb"  # what every rotary model of transformers calls it, in a module of its own


def has_kernels(device: torch.device) -> bool:
    """Whether Triton can build kernels for this device."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


class Fused:
    """The kernels that a model may use, found once.

    Args:
        model: asked part by part, on made-up numbers.
    """

    def __init__(self, model: CausalModel) -> None:
        inner: nn.Module = whole_model(model)
        kinds: dict[object, bool] = {}
        self.forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        for module in inner.modules():
            for replacement in (_norm(module), _gated(module)):
                if replacement is None:
                    continue
                kind = type(module), replacement.__name__
                if kind not in kinds:
                    kinds[kind] = _same(module, replacement, model)
                if kinds[kind]:
                    self.forwards.append((module, replacement))
        names = sorted({type(module).__module__ for module in inner.modules()})
        files = [sys.modules[name] for name in names if name in sys.modules]
        self.rotary = [
            file for file in files if hasattr(file, ROTARY) and _turns(getattr(file, ROTARY), model)
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block the model runs on the kernels, but for what a thread beside this one trains."""
        usual = [(file, getattr(file, ROTARY)) for file in self.rotary]
        own = [(module, vars(module).get("forward")) for module, _ in self.forwards]
        for module, replacement in self.forwards:
            module.forward = _without_gradients(replacement, module.forward)
        for file, function in usual:
            setattr(file, ROTARY, _rotary(function))
        try:
            yield
        finally:
            for module, forward in own:
                del module.forward
                if forward is not None:
                    module.forward = forward
            for file, function in usual:
                setattr(file, ROTARY, function)


def _without_gradients(
    replacement: Callable[[Tensor], Tensor], usual: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def forward(*inputs: Any, **named: Any) -> Tensor:
        kernel = len(inputs) == 1 and not named and not torch.is_grad_enabled()
        return replacement(*inputs) if kernel else usual(*inputs, **named)

    return forward


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The kernel for a module that looks like a root-mean-square norm."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (isinstance(weight, Tensor) and weight.dim() == 1 and isinstance(eps, float)):
        return None
    from klent.rollout.triton import normalise

    def norm(x: Tensor) -> Tensor:
        return normalise(x, module.weight, eps)  # type: ignore[arg-type]

    return norm


def _gated(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The kernel for a module that looks like a gated MLP."""
    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(isinstance(part, nn.Module) for part in parts):
        return None
    from klent.rollout.triton import gate

    def gated(x: Tensor) -> Tensor:
        gate_proj, up_proj, down_proj = parts
        out: Tensor = down_proj(gate(gate_proj(x), up_proj(x)))
        return out

    return gated


def _same(module: nn.Module, replacement: Callable[[Tensor], Tensor], model: CausalModel) -> bool:
    """Whether the two give the same of made-up numbers."""
    gate_proj = getattr(module, "gate_proj", None)
    width = module.weight.shape[0] if gate_proj is None else gate_proj.in_features  # type: ignore[index]
    x = _made_up(3, 1, int(width), like=model)
    try:
        with torch.no_grad():
            expected, actual = module(x), replacement(x)
    except Exception:  # a compiler's errors are of no common type
        return False
    return expected.dtype == actual.dtype and close(expected.float(), actual.float(), model.dtype)


def _turns(function: Callable[..., Any], model: CausalModel) -> bool:
    """Whether a function of this name is the plain rotation of all dimensions."""
    from klent.rollout.triton import rotate

    query, key, turn = (_made_up(3, heads, 1, 16, like=model) for heads in (4, 2, 1))
    cos, sin = turn[:, 0].cos(), turn[:, 0].sin()
    try:
        with torch.no_grad():
            expected, actual = function(query, key, cos, sin), rotate(query, key, cos, sin)
    except Exception:
        return False
    return all(close(x.float(), y.float(), model.dtype) for x, y in zip(expected, actual, strict=True))


def _made_up(*shape: int, like: CausalModel) -> Tensor:
    count = torch.Size(shape).numel()
    numbers = torch.arange(count, device=like.device, dtype=torch.float32)
    return (3.0 * (1.7 * numbers).sin()).view(shape).to(like.dtype)


def _rotary(usual: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel for one token per row; other calls, such as those of training meanwhile, go where they went."""
    from klent.rollout.triton import rotate

    def apply(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> Any:
        one = query.dim() == 4 and query.shape[2] == 1 and cos.shape == (len(query), 1, query.shape[3])
        if others or named or not one or torch.is_grad_enabled():
            return usual(query, key, cos, sin, *others, **named)
        return rotate(query, key, cos, sin)

    return apply

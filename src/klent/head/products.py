"""Matrix products on a CPU, taken through oneDNN.

PyTorch hands float32 products on x86 to MKL, whose kernels for processors of other makers stop at AVX2.
oneDNN is in the same wheel, uses whatever the processor has, and on an AMD processor with AVX-512 multiplies
the matrices of a language model 2 to 2.5 times as fast (docs/log.md). Where the processor stops at AVX2 itself,
oneDNN gains on large weights alone, such as a head; a layer's of a small model are 1.2 to 2 times as fast in MKL for
few rows, and no slower for many. oneDNN is reached by the operation that ``torch.compile`` uses; where that does not
exist, or for other dtypes and devices, the ordinary product is taken. Both are float32 products with float32 sums:
they differ by rounding.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from klent.head.autograd import Context

_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
_MKLS = range(0) if _AVX512 else range(1 << 16, 1 << 20)
"""For weights of so many elements MKL is the faster one, measured at 192 x 576 to 1536 x 576; smaller ones keep
the bits of earlier runs."""


def _uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes this product; ``torch.backends.mkldnn.flags(enabled=False)`` switches it off."""
    float32_on_cpu = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    allowed = _ONEDNN is not None and bool(torch.backends.mkldnn.enabled)
    return float32_on_cpu and allowed and weight.numel() not in _MKLS


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` without a gradient.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``; a transposed view costs nothing extra, so this function also computes the two
            products of a linear layer's backward.
        bias: ``[N]``.

    Returns:
        ``[..., N]``, new memory.
    """
    if _ONEDNN is None or not _uses_onednn(x, weight):
        return functional.linear(x, weight, bias)
    result: Tensor = _ONEDNN(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.T) if wants_x else None,
            product(rows.T, x.reshape(-1, x.shape[-1]).T) if wants_weight else None,
            rows.sum(dim=0) if wants_bias else None,
        )


class Linear(nn.Linear):
    """``nn.Linear`` whose products, forward and backward, are those of :func:`product` where oneDNN takes them."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not _uses_onednn(x, self.weight):
            return product(x, self.weight, self.bias)
        result: Tensor = _Linear.apply(x, self.weight, self.bias)
        return result


def use_onednn_linears(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` of a model a :class:`Linear`; weights, names and ties stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear

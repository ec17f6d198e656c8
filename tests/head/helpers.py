"""A random problem for the head, and what one loss on it gives: values and gradients."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from klent import TokenStats, token_stats


@dataclass(frozen=True)
class Problem:
    """Inputs, and the two coefficients ``c = dL/dlogp`` and ``e = dL/dH`` of a loss."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    target: Tensor
    c: Tensor
    e: Tensor
    temperature: float = 0.7

    def to(self, dtype: torch.dtype) -> "Problem":
        names = ("hidden", "weight", "bias")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


def problem(rows: int, width: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Problem(
        hidden=normal(rows, width).to(dtype),
        weight=normal(size, width).to(dtype),
        bias=normal(size).to(dtype),
        target=torch.randint(size, (rows,), generator=generator),
        c=normal(rows),
        e=normal(rows),
    )


def stats(p: Problem, **options: Any) -> TokenStats:
    options = {"bias": p.bias, "temperature": p.temperature, **options}
    return token_stats(p.hidden, p.weight, p.target, **options)


def everything(p: Problem, **options: Any) -> dict[str, Tensor]:
    """``logp``, ``entropy`` and the gradients of ``sum(c * logp + e * entropy)`` in the three inputs."""
    p = replace(p, **{k: getattr(p, k).detach().requires_grad_() for k in ("hidden", "weight", "bias")})
    out = stats(p, **options)
    assert out.entropy is not None
    loss = (p.c.to(out.logp) * out.logp).sum() + (p.e.to(out.logp) * out.entropy).sum()
    loss.backward()
    return {
        "logp": out.logp.detach(),
        "entropy": out.entropy.detach(),
        **{f"d{name}": getattr(p, name).grad for name in ("hidden", "weight", "bias")},
    }

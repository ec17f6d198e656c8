"""The autograd node of the token statistics: what the CPU and GPU implementations share.

An implementation brings two functions, :class:`Kernels`: one sweeps the vocabulary and returns sums, one
turns the coefficients ``c = dL/dlogp`` and ``e = dL/dH`` into gradients. This file makes statistics of the
sums, saves what the backward needs, and drops the rows that contribute nothing (``c = e = 0``) before the
gradients are computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from klent.head.stats import NATS, Head, LogitTransform, TokenStats


class Context(Protocol):
    """What torch passes to the forward and backward of an autograd function, as far as it is used here."""

    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """What was saved; None comes back as None."""
        ...

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors for the backward."""
        ...

    def mark_non_differentiable(self, *outputs: Tensor) -> None:
        """These outputs carry no gradient."""
        ...

    def set_materialize_grads(self, value: bool) -> None:
        """False: the gradient of an output that the loss does not use is None instead of zeros."""
        ...


class Sums(NamedTuple):
    """What a sweep over the vocabulary finds for each row, ``[N]`` each; logits ``z`` are in bits."""

    m: Tensor
    """The largest logit."""
    s: Tensor
    """``sum_v 2^(z_v - m)``."""
    u: Tensor
    """``sum_v 2^(z_v - m) (z_v - m)``; may be 0 where no entropy is asked for."""
    at_target: Tensor
    """The logit of the target."""
    s2: Tensor | None = None
    """``sum_v 4^(z_v - m)``; None where the collision is not asked for."""
    u2: Tensor | None = None
    """``sum_v 4^(z_v - m) (z_v - m)``, likewise."""
    kept: tuple[Tensor, ...] = ()
    """Tiles that need no second product, one per block of the vocabulary from its start on, ``[N, columns]``."""


class Rows(NamedTuple):
    """The rows that need a gradient, ``[N]`` each."""

    target: Tensor
    m: Tensor
    s: Tensor
    mean: Tensor
    """``u / s``, bits."""
    c: Tensor
    """dL/dlogp."""
    e: Tensor
    """dL/dH."""


@dataclass(frozen=True)
class Kept:
    """Tiles that the sweep left to the backward.

    Attributes:
        tiles: as in :class:`Sums`.
        active: the rows that need a gradient; None = all of them.
    """

    tiles: Sequence[Tensor] = ()
    active: Tensor | None = None

    def copy(self, block: int, rows: slice) -> Tensor | None:
        """Some of the rows that need a gradient, of the block of this number, to be written over; None = not kept."""
        if block >= len(self.tiles):
            return None
        tile = self.tiles[block]
        return tile[rows].clone() if self.active is None else tile.index_select(0, self.active[rows])


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of hidden states and bias in the precision of the sums, of the weight in its own; None where not wanted."""
Wanted = tuple[bool, bool, bool]


class Kernels(NamedTuple):
    """An implementation of the head.

    Attributes:
        sweep: (head, target, whether the entropy is wanted, whether the collision is, bytes of tiles that may be
            kept) -> sums of each row.
        gradients: (head, rows, which of hidden, weight and bias need a gradient, kept tiles) -> their gradients.
    """

    sweep: Callable[[Head, Tensor, bool, bool, int], Sums]
    gradients: Callable[[Head, Rows, Wanted, Kept], Gradients]


def fused_token_stats(
    kernels: Kernels, head: Head, target: Tensor, entropy: bool, collision: bool = False, keep_bytes: int = 0
) -> TokenStats:
    """Token statistics of a head, ``[N]``, by these kernels; differentiable once."""
    return TokenStats(*_TokenStats.apply(*head, target, kernels, entropy, collision, keep_bytes))


def check_first_derivative(name: str, fix: str) -> None:
    """Refuse ``create_graph=True`` in a backward; staying silent would make the gradient a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} is differentiable once, and create_graph=True asks for a second time: {fix}"
        )


class _Context(Context, Protocol):
    transform: LogitTransform
    kernels: Kernels


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        target: Tensor,
        kernels: Kernels,
        entropy: bool,
        collision: bool,
        keep_bytes: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        target = target.contiguous()
        keep = keep_bytes if any(ctx.needs_input_grad) else 0
        with torch.autocast(hidden.device.type, enabled=False):  # it would round products to bfloat16
            sums = kernels.sweep(Head(hidden, weight, bias, transform), target, entropy, collision, keep)
        m, s, u, at_target = sums[:4]
        mean = u / s
        logp = ((at_target - m) - s.log2()) * NATS
        if bias is not None and transform.softcap is None:
            logp = logp.masked_fill(bias[target] == -torch.inf, -torch.inf)
        ctx.save_for_backward(hidden, weight, bias, target, m, s, mean, *sums.kept)
        ctx.transform, ctx.kernels = transform, kernels
        ctx.set_materialize_grads(False)
        squares = _collision(sums)
        ctx.mark_non_differentiable(*(x for x in squares if x is not None))
        return logp, (s.log2() - mean) * NATS if entropy else None, *squares

    @staticmethod
    def backward(ctx: _Context, c: Tensor | None, e: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        check_first_derivative("token_stats", 'use token_stats(..., implementation="reference") there')
        hidden, weight, bias, target, m, s, mean, *tiles = ctx.saved_tensors
        c = torch.zeros_like(mean) if c is None else c
        e = torch.zeros_like(mean) if e is None else e
        rows, x = Rows(target, m, s, mean, c, e), hidden
        active = ((c != 0) | (e != 0)).nonzero().squeeze(1)  # on a GPU the host waits here, once
        if active.numel() == 0:
            inputs = zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
            return *(torch.zeros_like(x) if wanted else None for x, wanted in inputs), *[None] * 6
        kept = Kept(tiles)
        if active.numel() < c.numel():
            kept = Kept(tiles, active)
            x, rows = hidden.index_select(0, active), Rows(*(row.index_select(0, active) for row in rows))
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        with torch.autocast(hidden.device.type, enabled=False):
            dhidden, dweight, dbias = ctx.kernels.gradients(
                Head(x, weight, bias, ctx.transform), rows, wanted, kept
            )
        if dhidden is not None:
            dhidden = dhidden.to(hidden.dtype)
            if active.numel() < c.numel():
                dhidden = torch.zeros_like(hidden).index_copy_(0, active, dhidden)
        if dbias is not None:
            dbias = dbias.to(bias.dtype)
        return dhidden, dweight, dbias, *[None] * 6


def _collision(sums: Sums) -> tuple[Tensor | None, Tensor | None]:
    """``sum_v p_v^2`` and ``sum_v p_v^2 log p_v`` in nats, from the sums of a row."""
    if sums.s2 is None or sums.u2 is None:
        return None, None
    square = sums.s.square()
    collision = sums.s2 / square
    return collision, (sums.u2 / square - collision * sums.s.log2()) * NATS

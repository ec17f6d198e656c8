"""Divergence between two models at every token, over the whole vocabulary and without its logits.

Both models' logits come in tiles (some rows x some tokens of the vocabulary). A first sweep finds the
normalisers, a second one the divergence and ``g``, the mean under p of dD/dp; the backward computes the
policy's tiles a third time:

    dD/dz_v = p_v (dD/dp_v - g)

The target gets no gradient. Memory is a handful of tiles, whatever the vocabulary.

The node is not that of :mod:`klent.head.autograd`: it reads two heads and has one output, its sums come from
two sweeps, and its logits stay in nats, because forward and reverse divergences mix both models' logits.
"""

import math
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from klent.head.autograd import Context, check_first_derivative
from klent.head.products import product
from klent.head.stats import Head, LogitTransform, accumulation_dtype

__all__ = ["DivergenceKind", "Head", "token_divergence"]

DivergenceKind = Literal["forward", "reverse", "jeffreys", "total_variation"]

TILE_ROWS, TILE_COLUMNS = 1024, 1024


def token_divergence(
    policy: Head,
    target: Head,
    *,
    divergence: DivergenceKind = "reverse",
    skew: float = 0.0,
    forward_above: float | None = None,
) -> Tensor:
    """Divergence between the next-token distributions p of a policy and t of a target, exact for each row.

        forward           KL(t ‖ skew·t + (1 - skew)·p)      the policy covers all that the target does
        reverse           KL(p ‖ skew·p + (1 - skew)·t)      the policy keeps to what the target does
        jeffreys          forward + reverse                  both
        total_variation   Σ |p - t| / 2                      the largest difference on any set of tokens

    Distillation and trust regions over the full vocabulary: where the sampled token's log-ratio is an estimate,
    a KL is its mean. A skew bounds a KL by -log(skew), also where one of the two lacks tokens of the other;
    total variation is at most 1.

    Args:
        policy: hidden states ``[N, H]`` and head of the policy. ``hidden``, ``weight`` and ``bias`` receive
            gradients.
        target: the same rows under the target, any width; its vocabulary must be the policy's. Receives no
            gradient.
        divergence: ``forward``, ``reverse``, ``jeffreys`` or ``total_variation``.
        skew: in [0, 1); 0 is the plain divergence. Of ``jeffreys`` it is in both parts; total variation has none.
        forward_above: nats, in [0, inf); with ``reverse``, rows where the target's entropy is above it also get
            the forward divergence: where the target is unsure, the policy is to cover what it may say. Costs one
            more pass over the target's logits.

    Returns:
        Nats, or total variation in [0, 1], ``[N]``, float32 (float64 for float64 inputs); differentiable once.
        Not masked or averaged.

    Raises:
        ValueError: shapes do not fit, ``divergence`` is unknown, ``skew`` or ``forward_above`` out of range, or
            ``forward_above`` is given for another divergence than ``reverse``.

    Note:
        *Placement.* Its gradient is that of the divergence at the given prefixes. That the policy chooses its
        prefixes is left out, on samples of the policy too.

        *Kinks.* Total variation has no derivative in a token with p = t; 0 is taken there.

        *Infinite.* Without a skew a token that only one of the two knows can make the divergence inf; its
        gradient then is not to be used.

    Example:
        >>> import torch
        >>> hidden = torch.tensor([[1.0]])
        >>> policy = Head(hidden, torch.tensor([[0.0], [0.0]]))
        >>> target = Head(hidden, torch.tensor([[0.0], [math.log(3.0)]]))
        >>> token_divergence(policy, target)                      # log 2 - log 3 / 2
        tensor([0.1438])
        >>> token_divergence(policy, target, divergence="forward", skew=0.1)
        tensor([0.1070])
        >>> token_divergence(policy, target, divergence="total_variation")
        tensor([0.2500])
        >>> token_divergence(policy, target, divergence="jeffreys")     # log 3 / 4
        tensor([0.2747])
        >>> token_divergence(policy, target, forward_above=0.5)         # the target's entropy is 0.56
        tensor([0.2747])

    References:
        Agarwal et al., On-Policy Distillation of Language Models (GKD), 2023, arXiv:2306.13649.
        Ko et al., DistiLLM: Towards Streamlined Distillation (skew KL), 2024, arXiv:2402.03898.
        Jin et al., Entropy-Aware On-Policy Distillation (``forward_above``), 2026, arXiv:2603.07079.
    """
    _check_kind(divergence, skew, forward_above)
    for name, head in (("policy", policy), ("target", target)):
        if head.hidden.ndim != 2 or head.hidden.shape[1:] != head.weight.shape[1:]:
            raise ValueError(
                f"the {name}'s hidden [N, H] and weight [V, H] must agree: got {list(head.hidden.shape)} and "
                f"{list(head.weight.shape)}"
            )
    if len(policy.hidden) != len(target.hidden) or len(policy.weight) != len(target.weight):
        raise ValueError(
            f"policy and target must have the same rows and vocabulary: got {len(policy.hidden)} and "
            f"{len(target.hidden)} rows, {len(policy.weight)} and {len(target.weight)} tokens"
        )
    apart: Tensor = _Divergence.apply(*policy, target, _Kind(divergence, skew, forward_above))
    return apart


def _check_kind(divergence: str, skew: float, forward_above: float | None) -> None:
    if divergence not in get_args(DivergenceKind):
        expected = ", ".join(map(repr, get_args(DivergenceKind)))
        raise ValueError(f"divergence is {divergence!r}, expected one of {expected}")
    if not 0 <= skew < 1:
        raise ValueError(f"skew is {skew}, expected a number in [0, 1)")
    if skew and divergence == "total_variation":
        raise ValueError(f"skew is {skew} with total_variation, which is bounded without one; leave it at 0")
    if forward_above is None:
        return
    if divergence != "reverse":
        joined = (
            "no forward divergence to add"
            if divergence == "total_variation"
            else "the forward divergence at every row"
        )
        reason = f"{divergence} has {joined}"
        raise ValueError(f"forward_above belongs to divergence 'reverse': {reason}; leave it out")
    if not 0 <= forward_above < math.inf:
        raise ValueError(f"forward_above is {forward_above}, expected a number in [0, inf), nats")


class _Kind(NamedTuple):
    """A divergence as a sum over the vocabulary, and p times its derivative in p."""

    divergence: DivergenceKind
    skew: float
    forward_above: float | None

    def terms(self, log_p: Tensor, log_t: Tensor, unsure: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each token adds to D, and p dD/dp; ``unsure`` has the rows where forward joins, ``[R, 1]``."""
        if self.divergence == "total_variation":
            p = log_p.exp()
            difference = p - log_t.exp()
            return difference.abs() / 2, p * difference.sign() / 2
        if self.divergence == "forward":
            return self._part(log_p, log_t, forward=True)
        value, slope = self._part(log_p, log_t, forward=False)
        if self.divergence == "reverse" and unsure is None:
            return value, slope
        more = self._part(log_p, log_t, forward=True)
        if unsure is not None:  # and no product: inf times 0 is NaN
            more = torch.where(unsure, more[0], 0.0), torch.where(unsure, more[1], 0.0)
        return value + more[0], slope + more[1]

    def _part(self, log_p: Tensor, log_t: Tensor, *, forward: bool) -> tuple[Tensor, Tensor]:
        first, second = (log_t, log_p) if forward else (log_p, log_t)
        middle = second
        if self.skew:
            middle = torch.logaddexp(first + math.log(self.skew), second + math.log1p(-self.skew))
        mass = first.exp()
        value = torch.where(mass > 0, mass * (first - middle), 0.0)
        if forward:
            return value, -(1 - self.skew) * torch.where(mass > 0, (log_p + log_t - middle).exp(), 0.0)
        return value, value - self.skew * torch.where(mass > 0, mass * (first - middle).exp(), 0.0)


class _Tiles:
    """A head's logits, seen one tile at a time."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.dtype = accumulation_dtype(head.hidden, head.weight)
        self.hidden = head.hidden.detach().to(self.dtype)

    def logits(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        """Nats, and the derivative of the soft cap where there is one."""
        bias = None if self.head.bias is None else self.head.bias.detach()[columns].to(self.dtype)
        temperature, scale, softcap = self.head.transform
        raw = product(self.hidden[rows], self.weight(columns), bias) * scale
        if softcap is None:
            return raw / temperature, None
        bent = torch.tanh(raw / softcap)
        return bent * (softcap / temperature), 1 - bent.square()

    def weight(self, columns: slice) -> Tensor:
        return self.head.weight.detach()[columns].to(self.dtype)

    def normaliser(self) -> Tensor:
        """log Σ exp of every row, ``[N, 1]``."""
        log_z = self.hidden.new_full((len(self.hidden), 1), -math.inf)
        for rows, columns in _grid(self.head):
            tile = self.logits(rows, columns)[0].logsumexp(-1, keepdim=True)
            log_z[rows] = torch.logaddexp(log_z[rows], tile)
        return log_z

    def entropy(self, log_z: Tensor) -> Tensor:
        """Of every row, nats, ``[N, 1]``; ``log_z`` as of :meth:`normaliser`."""
        entropy = torch.zeros_like(log_z)
        for rows, columns in _grid(self.head):
            log_p = self.logits(rows, columns)[0] - log_z[rows]
            p = log_p.exp()
            entropy[rows] -= torch.where(p > 0, p * log_p, 0.0).sum(-1, keepdim=True)
        return entropy


class _Context(Context, Protocol):
    transforms: tuple[LogitTransform, LogitTransform]  # of policy and target
    kind: _Kind


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        transform: LogitTransform,
        target: Head,
        kind: _Kind,
    ) -> Tensor:
        head = Head(hidden, weight, bias, transform)
        policy_tiles, target_tiles = _Tiles(head), _Tiles(target)
        log_zp, log_zt = policy_tiles.normaliser(), target_tiles.normaliser()
        unsure = None if kind.forward_above is None else target_tiles.entropy(log_zt) > kind.forward_above
        total, mean = torch.zeros_like(log_zp[:, 0]), torch.zeros_like(log_zp[:, 0])
        for rows, columns in _grid(head):
            log_p = policy_tiles.logits(rows, columns)[0] - log_zp[rows]
            log_t = (target_tiles.logits(rows, columns)[0] - log_zt[rows]).to(log_p.dtype)
            value, slope = kind.terms(log_p, log_t, None if unsure is None else unsure[rows])
            total[rows] += value.sum(-1)
            mean[rows] += slope.sum(-1)
        heads = (hidden, weight, bias, target.hidden, target.weight, target.bias)
        ctx.save_for_backward(*heads, log_zp, log_zt, mean, unsure)
        ctx.transforms, ctx.kind = (transform, target.transform), kind
        return total

    @staticmethod
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        check_first_derivative("token_divergence", "there is no second derivative; take it of full logits")
        hidden, weight, bias, *theirs = ctx.saved_tensors[:6]
        log_zp, log_zt, mean, unsure = ctx.saved_tensors[6:]
        head = Head(hidden, weight, bias, ctx.transforms[0])
        policy_tiles, target_tiles = (
            _Tiles(head),
            _Tiles(Head(theirs[0], theirs[1], theirs[2], ctx.transforms[1])),
        )
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        dhidden = torch.zeros_like(policy_tiles.hidden) if wants_hidden else None
        dweight = (
            torch.zeros(weight.shape, dtype=policy_tiles.dtype, device=weight.device)
            if wants_weight
            else None
        )
        dbias = policy_tiles.hidden.new_zeros(len(weight)) if wants_bias else None
        gain = head.transform.scale / head.transform.temperature
        for rows, columns in _grid(head):
            z, bend = policy_tiles.logits(rows, columns)
            log_p = z - log_zp[rows]
            log_t = (target_tiles.logits(rows, columns)[0] - log_zt[rows]).to(log_p.dtype)
            slope = ctx.kind.terms(log_p, log_t, None if unsure is None else unsure[rows])[1]
            g = (slope - log_p.exp() * mean[rows, None]) * (upstream[rows, None] * gain)
            g = g if bend is None else g * bend
            if dhidden is not None:
                dhidden[rows] += product(g, policy_tiles.weight(columns).T)
            if dweight is not None:
                dweight[columns] += product(g.T, policy_tiles.hidden[rows].T)
            if dbias is not None:
                dbias[columns] += g.sum(0)
        return (
            None if dhidden is None else dhidden.to(hidden.dtype),
            None if dweight is None else dweight.to(weight.dtype),
            None if dbias is None else dbias.to(bias.dtype),
            None,
            None,
            None,
        )


def _grid(head: Head) -> list[tuple[slice, slice]]:
    return [
        (slice(row, row + TILE_ROWS), slice(column, column + TILE_COLUMNS))
        for column in range(0, len(head.weight), TILE_COLUMNS)
        for row in range(0, len(head.hidden), TILE_ROWS)
    ]

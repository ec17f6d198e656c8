"""From hidden states to the numbers per token that objectives work with: log-probability and entropy first."""

import importlib.util
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from klent.head.checks import check_inputs, check_transform
from klent.head.chunked import token_stats_chunked
from klent.head.reference import token_stats_reference
from klent.head.stats import Head, LogitTransform, TokenStats

__all__ = ["TokenStats", "token_stats"]

_IMPLEMENTATIONS = ("auto", "chunked", "triton", "reference")


def token_stats(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = True,
    collision: bool = False,
    keep_bytes: int = 0,
    implementation: Literal["auto", "chunked", "triton", "reference"] = "auto",
) -> TokenStats:
    """Log-probability of each target and entropy of each distribution, without keeping the logits.

        z = cap(scale·(W·h + b)) / temperature,  cap(x) = softcap·tanh(x/softcap)
        logp = z[target] - log Σᵥ exp zᵥ
        H = -Σᵥ pᵥ·log pᵥ,  p = softmax(z)
        collision = Σᵥ pᵥ²,  collision_logp = Σᵥ pᵥ²·log pᵥ

    An objective built from these two reaches the model through c = dL/dlogp and e = dL/dH alone:
    dL/dzᵥ = c·([v = target] - pᵥ) - e·pᵥ·(log pᵥ + H).

    Args:
        hidden: last hidden states (after the final norm), ``[N, H]`` or ``[..., H]``; float16, bfloat16,
            float32 or float64. Receives a gradient.
        weight: output embedding, ``[V, H]``; tied or not. Receives a gradient unless it is frozen.
        target: the token whose log-probability is wanted, in ``[0, V)``, ``[N]`` or ``[...]`` int64.
        bias: ``[V]``; ``-inf`` takes a token out of the vocabulary. Receives a gradient.
        temperature: dimensionless, > 0: the one that the tokens were sampled with.
        scale: dimensionless, what the model multiplies its logits with (``logit_scale`` of Cohere, 1 over
            the ``logits_scaling`` of Granite).
        softcap: nats, > 0: the bound of the model's logits (``final_logit_softcapping`` of Gemma); None
            leaves them as they are.
        entropy: False leaves the entropy out and saves a little time.
        collision: True adds ``collision`` and ``collision_logp`` in the same pass: with them
            :func:`klent.objectives.entropy_effect` is exact.
        keep_bytes: how much of the logits the forward may leave to the backward, which then need not compute
            them again; 0 leaves nothing. They take 4·N·V bytes in all (8 for float64).
        implementation: "chunked" works in tiles of the logits; "triton" does so with kernels for GPUs;
            "reference" holds all logits and is the definition that the others are tested against; "auto"
            takes "triton" for tensors on a GPU where Triton is installed, and "chunked" elsewhere.

    Returns:
        ``TokenStats`` in the shape of ``target``, nats, float32 (float64 for float64 inputs); what was not asked
        for is None. ``logp`` and ``entropy`` are differentiable once, ``collision`` and ``collision_logp`` carry
        no gradient. Nothing is shifted, masked or averaged: pass the hidden state that predicts ``target``, and
        only the positions trained on.

    Raises:
        ValueError: shapes do not fit, a target is outside the vocabulary, the temperature or the soft cap
            is not a positive number, the scale is 0 or not finite, the implementation is unknown, or
            "triton" is asked for where it cannot run.
        TypeError: ``target`` is not int64, or another tensor is not of a floating-point type.

    Note:
        *Precision.* Products and sums are float32 for bfloat16 and float16 inputs; a gradient has the dtype
        of its input.

        *Work.* "chunked" computes the logits twice (forward, and again in the backward, but for what
        ``keep_bytes`` holds) and needs one product each for the gradients of ``hidden`` and ``weight``; a
        gradient that nobody needs is not computed.
        Rows whose ``c`` and ``e`` are both exactly 0 (clipped, dropped or unselected tokens) are left out of
        the backward altogether: even a NaN in such a hidden state gives the gradient 0.

        *Against released code.* A fused head that returns an entropy without its gradient makes an entropy
        bonus silently do nothing; here both outputs carry the exact gradient.

    Examples:
        Logits (0, log 3) give the probabilities 1/4 and 3/4:

        >>> import math
        >>> import torch
        >>> from klent import token_stats
        >>> hidden = torch.tensor([[1.0], [1.0]])
        >>> weight = torch.tensor([[0.0], [math.log(3.0)]])
        >>> stats = token_stats(hidden, weight, torch.tensor([0, 1]))
        >>> stats.logp.exp()
        tensor([0.2500, 0.7500])
        >>> stats.entropy
        tensor([0.5623, 0.5623])
        >>> token_stats(hidden, weight, torch.tensor([0, 1]), temperature=0.5, entropy=False).logp.exp()
        tensor([0.1000, 0.9000])
        >>> token_stats(hidden, weight, torch.tensor([0, 1]), collision=True).collision  # 1/16 + 9/16
        tensor([0.6250, 0.6250])

    References:
        Milakov and Gimelshein, Online normalizer calculation for softmax, 2018, arXiv:1805.02867.
        Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models, 2024, arXiv:2411.09009.
    """
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: use {', '.join(_IMPLEMENTATIONS)}")
    check_inputs(hidden, weight, target, bias)
    transform = LogitTransform(temperature, scale, softcap)
    check_transform(transform)
    if keep_bytes < 0:
        raise ValueError(f"keep_bytes must be at least 0, not {keep_bytes}")
    compute = _choose(implementation, hidden)
    head = Head(hidden.reshape(-1, hidden.shape[-1]), weight, bias, transform)
    stats = compute(head, target.reshape(-1), entropy, collision, keep_bytes)
    numbers = (stats.logp, stats.entropy, stats.collision, stats.collision_logp)
    logp, *others = (None if x is None else x.view(target.shape) for x in numbers)
    assert logp is not None
    return TokenStats(logp, *others)


def _choose(implementation: str, hidden: Tensor) -> Callable[[Head, Tensor, bool, bool, int], TokenStats]:
    if implementation == "reference":
        return token_stats_reference
    installed = importlib.util.find_spec("triton") is not None
    if implementation == "triton" and not installed:
        raise ValueError('implementation="triton" needs Triton: pip install triton, or use "auto"')
    if implementation == "triton" or (implementation == "auto" and hidden.is_cuda and installed):
        from klent.head.triton import token_stats_triton

        return token_stats_triton
    return token_stats_chunked

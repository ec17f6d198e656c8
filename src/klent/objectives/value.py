"""What a critic learns from, and what is done with advantages made of its values."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import advantage as estimates_advantage
from klent.objectives.kinds import token_loss, without_coef
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["value_loss", "whiten"]


@token_loss(idle=without_coef)
def value_loss(
    value: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.5,
    value_old: Tensor | None = None,
    clip: float | None = None,
) -> TokenLoss:
    """Squared error of a critic.

        Lₜ = coef·(Vₜ - Gₜ)²
        with clip   Lₜ = coef·max((Vₜ - Gₜ)², (V_oldₜ + clamp(Vₜ - V_oldₜ, ±clip) - Gₜ)²)

    With ``clip`` a value that has moved further than that from where the step began, towards its target, has no
    gradient: a trust region for values.

    Args:
        value: what the critic expects of the reward still to come, before each token, ``[B, T]``, in units of
            reward. Receives the gradient.
        returns: what it is to expect, ``[B, T]``: the advantage plus ``value_old``. Receives no gradient.
        mask: True where a token counts, ``[B, T]`` bool.
        coef: scale, in [0, inf). On a shared trunk it weighs value against policy; a trunk of its own only meets it
            in ``max_grad_norm``.
        value_old: ``value`` at the start of the step's update, ``[B, T]``; read with ``clip`` alone. Receives no
            gradient.
        clip: largest change that is trained, in units of reward, in (0, inf); None = any.

    Returns:
        The loss per token. Metrics: ``value/error`` (mean square), and with ``clip`` ``value/clipped`` (share of
        tokens without a gradient).

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ, a setting is out of range, or ``clip`` is given without ``value_old``.

    Note:
        *Gradient.* ``dL/dV = 2·coef·(V - G)``, or 0 where clipped.

        *Against released code.* PPO trainers halve the square before their coefficient: c there is c/2 here.
        ``clip`` is in units of reward: 0.2 is small for rewards of 10 and everything for rewards of 0.1.

    Example:
        >>> import torch
        >>> from klent.objectives import value_loss
        >>> value, returns = torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 1.0]])
        >>> value_loss(value, returns, torch.tensor([[True, True]]), coef=1.0).loss
        tensor([[1.0000, 0.2500]])

    References:
        Schulman et al., Proximal Policy Optimization, 2017, arXiv:1707.06347.
        Engstrom et al., Implementation Matters in Deep Policy Gradients (what clipping is worth), 2020,
        arXiv:2005.12729.
    """
    check_number("coef", coef, 0, math.inf, ends="[)")
    if clip is not None:
        check_number("clip", clip, 0, math.inf, ends="()")
        if value_old is None:
            raise ValueError("clip is given without value_old, expected both: give value_old, or clip=None")
    others = {} if value_old is None else {"value_old": value_old}
    check_tokens(mask, value=value, returns=returns, **others)
    value, returns = on_mask(mask, value, returns.detach())
    error = (value - returns).square()
    metrics = {"value/error": metric(error, mask)}
    if clip is not None and value_old is not None:
        (start,) = on_mask(mask, value_old.detach())
        held = (start + (value - start).clamp(-clip, clip) - returns).square()
        stopped = ((value - start).abs() > clip) & (held > error)
        metrics["value/clipped"] = metric(stopped, mask)
        error = torch.maximum(error, held)
    return TokenLoss(coef * error, metrics)


@estimates_advantage
def whiten(advantage: Tensor, mask: Tensor, *, shift: bool = True) -> Tensor:
    """Advantages of one variance over the tokens of a step.

        Âₜ = (Aₜ - mean)/std,   or Aₜ/std without shift

    It makes the size of a step independent of the reward's scale. Where a penalty on KL is part of the reward, reward
    and penalty are divided alike, and their trade stays ``beta``. Where the penalty is a term of the loss it is not
    divided: the trade becomes ``beta·std``, which falls as rewards come to agree.

    Args:
        advantage: of each token, ``[B, T]``. Receives no gradient.
        mask: True where a token counts, ``[B, T]`` bool: the tokens of all completions of the step.
        shift: subtract the mean too: a baseline over the step, so that of a step in which everything went well half
            is blamed.

    Returns:
        ``[B, T]``, without gradient, 0 off the mask. The deviation divides by the number of tokens less one; where
        all advantages are equal nothing is divided.

    Raises:
        TypeError: ``mask`` is not bool or ``advantage`` not floating point.
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from klent.objectives import whiten
        >>> whiten(torch.tensor([[1.0, 3.0, 5.0]]), torch.tensor([[True, True, True]]))
        tensor([[-1.,  0.,  1.]])

    References:
        Huang et al., The N Implementation Details of RLHF with PPO, 2024, arXiv:2403.17031.
    """
    check_tokens(mask, advantage=advantage)
    (values,) = on_mask(mask, advantage.detach())
    count, size = mask.sum().to(values.dtype), values.abs().sum()
    mean = values.sum() / count.clamp(min=1)
    (centred,) = on_mask(mask, values - mean)
    std = (centred.square().sum() / (count - 1).clamp(min=1)).sqrt()
    rounding = 4 * torch.finfo(values.dtype).eps * size / count.clamp(min=1)
    scale = torch.where(std > rounding, std, 1.0)
    return (centred if shift else values) / scale

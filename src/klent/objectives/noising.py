"""Losses on the forward process of diffusion: a finished image is noised again, and the policy denoises it.

They need no step's probability, and so no trajectory: only images, whatever made them. Rows are images and columns
log-SNRs.
"""

import math

from torch import Tensor

from klent.objectives.checks import check_number, check_tokens
from klent.objectives.kinds import token_loss, without_coef
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["denoising_loss", "diffusion_nft"]


@token_loss()
def diffusion_nft(
    denoising: Tensor,
    denoising_old: Tensor,
    denoising_kl: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    beta: float = 1.0,
    advantage_max: float = 5.0,
) -> TokenLoss:
    """Negative-aware fine-tuning of a diffusion model: good images are denoised, bad ones are not.

        r = 1/2 + clip(A/a, -1, 1)/2,   a = advantage_max
        L = a/beta·(r·‖v⁺ - v‖² + (1 - r)·‖v⁻ - v‖²)
        v⁺ = v_old + beta·(v_θ - v_old),   v⁻ = v_old - beta·(v_θ - v_old)

    ``v`` is what the network should have predicted of the noised image. The policy learns how far it must go from
    the old one for its own extension that way to fit good images, and its mirror image to fit bad ones.

    Args:
        denoising: ``‖v_θ - v‖²``, ``[B, T]``; in a recipe in nats, see the note. Receives the gradient.
        denoising_old: the same of the policy at the start of the update, ``[B, T]``. Receives no gradient.
        denoising_kl: ``‖v_θ - v_old‖²``, ``[B, T]``. Receives the gradient.
        advantage: how much better an image is than expected, ``[B, T]``, the same for all columns of a row.
        mask: True on the entries to train on, ``[B, T]`` bool.
        beta: how far v⁺ extends the policy's own step, in (0, inf).
        advantage_max: a, where advantages are cut, in (0, inf).

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metrics ``denoising/loss``, of the policy
        on its own images, and ``denoising/kl``, from the policy at the start of the update.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a setting not a number.
        ValueError: shapes differ or a setting is out of range.

    Note:
        *Gradient.* With A cut at ±a, ``L = A·(denoising - denoising_old - denoising_kl) + a·beta·denoising_kl`` up to
        a constant: the loss of denoising weighted by A, less what moving anywhere costs, and a penalty of a·beta on
        the divergence from the policy at the start. In the first pass denoising_kl is 0 and so is its gradient.

        *Optimum.* If v_old is exact, ``v_θ = v_old + E[A·(v - v_old) | noised image]/(a·beta)``: to first order,
        images of the old policy weighted by exp(A/(a·beta)). Nothing holds it to a reference; add ``token_kl``.

        *In a recipe* the squares are of the predicted noise times b²/(2s²), so that ``denoising_kl`` is the exact KL
        of the step. Another weight of the log-SNRs has the same optimum as long as the network can represent it.

        *Against released code.* There the squares are of the predicted image, each divided by its mean distance; the
        old policy, which samples, follows the new one as a moving average; and a squared distance of the velocity
        from the reference's is added.

    Example:
        One image twice as good as the bound, one as bad, at the start: the second's loss is that of its mirror image.

        >>> import torch
        >>> from klent.objectives import diffusion_nft
        >>> now, same = torch.tensor([[2.0], [2.0]], requires_grad=True), torch.zeros(2, 1)
        >>> advantage, mask = torch.tensor([[10.0], [-10.0]]), torch.ones(2, 1, dtype=torch.bool)
        >>> out = diffusion_nft(now, now.detach(), same, advantage, mask)
        >>> out.loss.T, torch.autograd.grad(out.loss.sum(), now)[0].T
        (tensor([[10., 10.]], grad_fn=<PermuteBackward0>), tensor([[ 5., -5.]]))

    References:
        Zheng et al., DiffusionNFT: Online Diffusion Reinforcement with Forward Process, 2025, arXiv:2509.16117;
        github.com/NVlabs/DiffusionNFT.
    """
    check_tokens(
        mask,
        denoising=denoising,
        denoising_old=denoising_old,
        denoising_kl=denoising_kl,
        advantage=advantage,
    )
    check_number("beta", beta, 0, math.inf, ends="()")
    check_number("advantage_max", advantage_max, 0, math.inf, ends="()")
    now, old, kl, a = on_mask(mask, denoising, denoising_old.detach(), denoising_kl, advantage.detach())
    right = 0.5 + (a / advantage_max).clamp(-1, 1) / 2
    positive = beta * now + (1 - beta) * old - beta * (1 - beta) * kl
    negative = -beta * now + (1 + beta) * old + beta * (1 + beta) * kl
    loss = advantage_max / beta * (right * positive + (1 - right) * negative)
    return TokenLoss(loss, {"denoising/loss": metric(now, mask), "denoising/kl": metric(kl, mask)})


@token_loss(idle=without_coef)
def denoising_loss(denoising_data: Tensor, mask: Tensor, *, coef: float) -> TokenLoss:
    """The loss that diffusion models are trained with, on images of data: DDRL's term beside a reward.

        Lₜ = coef·denoising_dataₜ

    It draws the policy towards the data, also where its own images never are: summed over steps it is the KL from
    the data's noised paths to those of the policy, up to a constant.

    Args:
        denoising_data: loss of denoising a noised image of the data, ``[B, T]``; in a recipe in nats,
            ``b²/(2s²)·‖ε - noise‖²``. Receives the gradient.
        mask: True on the entries to train on, ``[B, T]`` bool.
        coef: weight of the term, in [0, inf).

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metric ``denoising/data``, without
        ``coef``.

    Raises:
        TypeError: ``mask`` is not bool, ``denoising_data`` not floating point or ``coef`` not a number.
        ValueError: shapes differ or ``coef`` is out of range.

    Note:
        *Direction.* KL(data ‖ policy), where ``token_kl`` and ``sequence_kl`` have KL(policy ‖ reference): it fears
        images that the policy no longer makes, and not those that it should not make.

        *Optimum.* With a reward, ``max E[r] - coef·KL(data ‖ policy)`` is at ``data(x)·coef/(c - r(x))``, not at the
        data tilted by exp(r/coef). That needs the reward ``-coef·exp(-(r - Z)/coef)``, with
        ``Z = coef·log E_data[exp(r/coef)]``, as in DDRL's analysis.

    Example:
        >>> import torch
        >>> from klent.objectives import denoising_loss
        >>> denoising_loss(torch.tensor([[2.0, 3.0]]), torch.tensor([[True, False]]), coef=0.5).loss
        tensor([[1., 0.]])

    References:
        Ye et al., Data-regularized Reinforcement Learning for Diffusion Models at Scale, 2025, arXiv:2512.04332.
    """
    check_tokens(mask, denoising_data=denoising_data)
    check_number("coef", coef, 0, math.inf, ends="[)")
    (loss,) = on_mask(mask, denoising_data)
    return TokenLoss(coef * loss, {"denoising/data": metric(loss, mask)})

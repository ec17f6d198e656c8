"""Gaussian policies: how likely an action is, and how far two of them are apart."""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_broadcasts
from klent.objectives.kinds import measure

__all__ = ["gaussian_kl", "gaussian_logp"]


@measure
def gaussian_logp(sample: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of a Gaussian with independent coordinates: a denoising step, or an action.

        log N(x; μ, σ²) = -Σᵢ ((xᵢ - μᵢ)²/(2σᵢ²) + log σᵢ + log(2π)/2)

    It stands for a diffusion model's step as the log-probability does for a token: one number per step, which
    every surrogate of this package takes.

    Args:
        sample: what was drawn, ``[..., D]``. A gradient through it is not the policy gradient's: detach it.
        mean: ``[..., D]``, or of a shape that broadcasts to it.
        std: standard deviations, positive (not checked), of a shape that broadcasts to ``[..., D]``:
            ``[..., 1]`` is isotropic.

    Returns:
        Nats, ``[...]``, differentiable in all three. Summed over the coordinates, not averaged.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: a shape does not broadcast to that of ``sample``.

    Note:
        *Gradient.* ``dlogp/dmean = (sample - mean)/std²``.

        *Against released code.* DDPO's averages over the coordinates of a latent, which is this divided by D,
        so that a ratio formed with it is the true one to the power of 1/D. std 0, a deterministic sampler's
        step, has no density.

    Example:
        >>> import torch
        >>> from klent.objectives import gaussian_logp
        >>> gaussian_logp(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.tensor([1.0]))
        tensor(-2.3379)
    """
    check_broadcasts(sample=sample, mean=mean, std=std)
    return -(((sample - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(dim=-1)


@measure
def gaussian_kl(mean_p: Tensor, std_p: Tensor, mean_q: Tensor, std_q: Tensor) -> Tensor:
    """KL between Gaussians with independent coordinates.

        KL(p ‖ q) = Σᵢ (log(σq/σp) + (σp² + (μp - μq)²)/(2σq²) - 1/2)
        σp = σq = σ:   KL(p ‖ q) = ‖μp - μq‖²/(2σ²)

    How far a continuous policy, or one denoising step, has moved.

    Args:
        mean_p: ``[..., D]``.
        std_p: positive (not checked), of a shape that broadcasts to ``[..., D]``: ``[..., 1]`` is isotropic,
            ``[..., D]`` diagonal.
        mean_q: ``[..., D]``, or of a shape that broadcasts to it.
        std_q: as ``std_p``.

    Returns:
        Nats, ``[...]``, summed over the last axis, differentiable in all four. Exactly 0 where p is q.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: a shape does not broadcast to that of ``mean_p``.

    Note:
        *Gradient.* ``dKL/dmean_p = (mean_p - mean_q)/std_q²``: the second distribution's deviation counts.

        *Diffusion.* Summed over the steps of a trajectory, on states from p, it is the KL between
        trajectories, and at least that between the images they end in. For a DDPM that predicts noise it is
        ``βₜ²/(2σₜ²·αₜ·(1 - ᾱₜ))·‖ε_p - ε_q‖²``: DPOK's released code leaves that weight out, and Flow-GRPO's
        uses a σ without its √dt.

    Example:
        1/2 for the distance; log 2 + 1/8 - 1/2 for the width.

        >>> import torch
        >>> from klent.objectives import gaussian_kl
        >>> zero, one, two = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
        >>> gaussian_kl(one, one, zero, one), gaussian_kl(zero, one, zero, two)
        (tensor(0.5000), tensor(0.3181))
    """
    check_broadcasts(mean_p=mean_p, std_p=std_p, mean_q=mean_q, std_q=std_q)
    log_ratio = std_p.log() - std_q.log()
    # (σp² / σq² - 1)/2 - log(σp/σq), which expm1 keeps exact, and exactly 0, where the two are close
    width = torch.expm1(2 * log_ratio) / 2 - log_ratio
    return (((mean_p - mean_q) / std_q).square() / 2 + width).sum(dim=-1)

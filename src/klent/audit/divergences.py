"""Every divergence from a reference, token by token and of sequences, in each way that a loss can be given it."""

import math

import torch
from torch import Tensor

from klent import objectives as O
from klent.audit.call import LossFunction
from klent.audit.measures import SKEW
from klent.audit.placements import Estimator, Placement, penalty, plain, weighted_reward
from klent.audit.rewards import in_reward


def reverse(kl: Tensor, mask: Tensor) -> Tensor:
    """KL(policy ‖ reference) over the whole vocabulary, as it is."""
    return kl


def forward(forward_kl: Tensor, mask: Tensor) -> Tensor:
    """KL(reference ‖ policy) likewise."""
    return forward_kl


def jeffreys(jeffreys_kl: Tensor, mask: Tensor) -> Tensor:
    """The sum of both likewise."""
    return jeffreys_kl


def skewed(skewed_kl: Tensor, mask: Tensor) -> Tensor:
    """KL(policy ‖ mixture of policy and reference) likewise."""
    return skewed_kl


def jeffreys_of_samples(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """``kl_in_loss`` in both directions."""
    one = O.kl_in_loss(logp, logp_ref, mask, coef=1.0, logp_old=logp_old)
    other = O.kl_in_loss(logp, logp_ref, mask, coef=1.0, divergence="forward", logp_old=logp_old)
    return one.loss + other.loss


def skewed_of_samples(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """The skewed KL token by token through its score function: ρ·(log(p/m) - SKEW·p/m)·logp."""
    p, b, q = (torch.where(mask, x, 0.0).detach() for x in (logp, logp_old, logp_ref))
    return (p - b).exp() * _skewed_score(p, q) * logp


def of_sequences(
    logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor, *, divergence: str
) -> Tensor:
    """A divergence between sequences through its score function, with ratios of whole sequences.

        reverse  P/B·log(P/Q)·logp        skewed    P/B·(log(P/M) - SKEW·P/M)·logp,   M = SKEW·P + (1 - SKEW)·Q
        forward  -Q/B·logp                jeffreys  reverse + forward

    P is the policy, Q the reference, B the sampler. All factors but the last are numbers.
    """
    p, b, q = (
        torch.where(mask, x, 0.0).sum(dim=1, keepdim=True).detach() for x in (logp, logp_old, logp_ref)
    )
    ratio, likelihood = (p - b).exp(), -(q - b).exp()
    weight = {
        "reverse": ratio * (p - q),
        "forward": likelihood,
        "jeffreys": ratio * (p - q) + likelihood,
        "skewed": ratio * _skewed_score(p, q),
    }[divergence]
    return weight * logp


def sequence_kl(
    logp: Tensor, logp_old: Tensor, kl: Tensor, mask: Tensor, *, group: bool = False
) -> O.TokenLoss:
    """``sequence_kl_loss``; with ``group`` all rows are one group, each others' baseline."""
    one_group = torch.zeros(len(mask), dtype=torch.long) if group else None
    return O.sequence_kl_loss(logp, kl, mask, coef=1.0, logp_gen=logp_old, group=one_group)


def jeffreys_of_sequences(
    logp: Tensor, logp_old: Tensor, logp_ref: Tensor, kl: Tensor, mask: Tensor
) -> Tensor:
    """``sequence_kl_loss``, and the reference's likelihood of the samples for the other direction."""
    likelihood = of_sequences(logp, logp_old, logp_ref, mask, divergence="forward")
    return sequence_kl(logp, logp_old, kl, mask).loss + likelihood


def forward_path(logp: Tensor, logp_old: Tensor, forward_kl: Tensor, mask: Tensor) -> O.TokenLoss:
    """``sequence_kl_loss`` of KL(reference ‖ policy)."""
    return sequence_kl(logp, logp_old, forward_kl, mask)


def jeffreys_path(logp: Tensor, logp_old: Tensor, jeffreys_kl: Tensor, mask: Tensor) -> O.TokenLoss:
    """``sequence_kl_loss`` of the sum of both."""
    return sequence_kl(logp, logp_old, jeffreys_kl, mask)


def skewed_path(logp: Tensor, logp_old: Tensor, skewed_kl: Tensor, mask: Tensor) -> O.TokenLoss:
    """``sequence_kl_loss`` of the skewed KL."""
    return sequence_kl(logp, logp_old, skewed_kl, mask)


def sequence_entropy(logp: Tensor, logp_old: Tensor, entropy: Tensor, mask: Tensor) -> O.TokenLoss:
    """``sequence_entropy_loss`` from another sampler's tokens."""
    return O.sequence_entropy_loss(logp, entropy, mask, coef=1.0, logp_gen=logp_old)


def surprise(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """The entropy of sequences through its score function, with the ratio of the whole sequence."""
    p, b = (torch.where(mask, x, 0.0).sum(dim=1, keepdim=True).detach() for x in (logp, logp_old))
    return -(p - b).exp() * p * logp


def _skewed_score(p: Tensor, q: Tensor) -> Tensor:
    over_middle = p - torch.logaddexp(p + math.log(SKEW), q + math.log(1 - SKEW))
    return over_middle - SKEW * over_middle.exp()


def _of(aim: str, name: str, loss: LossFunction, **settings: object) -> Placement:
    return Placement(name, loss, tuple(settings.items()), aim)


_K2: Estimator = "k2"
_K3: Estimator = "k3"
DIVERGENCES = (
    _of("reverse_kl_token", "k2 in the loss", plain, estimator=_K2),
    _of("reverse_kl_token", "`kl_in_loss`", O.kl_in_loss, coef=1.0),
    _of("reverse_kl_token", "over the vocabulary", reverse),
    _of("forward_kl_token", "k3 in the loss", plain, estimator=_K3),
    _of("forward_kl_token", "`kl_in_loss`, forward", O.kl_in_loss, coef=1.0, divergence="forward"),
    _of("forward_kl_token", "over the vocabulary", forward),
    _of("jeffreys_kl_token", "`kl_in_loss`, both", jeffreys_of_samples),
    _of("jeffreys_kl_token", "over the vocabulary", jeffreys),
    _of("skewed_kl_token", "score function, ρ", skewed_of_samples),
    _of("skewed_kl_token", "over the vocabulary", skewed),
    _of("entropy", "`entropy_loss`", O.entropy_loss, coef=1.0),
    _of("reverse_kl", "`kl_in_loss`", O.kl_in_loss, coef=1.0),
    _of("reverse_kl", "k1 in the reward, to go", in_reward(penalty), estimator="k1"),
    _of("reverse_kl", "k1 in the reward, to go, ρ of the token", weighted_reward, over="token"),
    _of("reverse_kl", "k1 in the reward, to go, ρ of the sequence", weighted_reward, over="sequence"),
    _of("reverse_kl", "score function, ρ of the sequence", of_sequences, divergence="reverse"),
    _of("reverse_kl", "`sequence_kl_loss`", sequence_kl),
    _of("forward_kl", "`kl_in_loss`, forward", O.kl_in_loss, coef=1.0, divergence="forward"),
    _of("forward_kl", "likelihood, ρ of the sequence", of_sequences, divergence="forward"),
    _of("forward_kl_path", "`sequence_kl_loss` of the forward KL", forward_path),
    _of("jeffreys_kl", "score function, ρ of the sequence", of_sequences, divergence="jeffreys"),
    _of("jeffreys_kl", "`sequence_kl_loss` + likelihood", jeffreys_of_sequences),
    _of("jeffreys_kl_path", "`sequence_kl_loss` of both", jeffreys_path),
    _of("skewed_kl", "score function, ρ of the sequence", of_sequences, divergence="skewed"),
    _of("skewed_kl_path", "`sequence_kl_loss` of the skewed KL", skewed_path),
    _of("entropy_sequence", "`entropy_loss`", O.entropy_loss, coef=1.0),
    _of("entropy_sequence", "score function, ρ of the sequence", surprise),
    _of("entropy_sequence", "`sequence_entropy_loss`", sequence_entropy),
)

REDUCED = (
    _of("reverse_kl", "`kl_in_reward` with `reward_to_go`", in_reward(O.kl_in_reward), coef=1.0),
    _of("reverse_kl", "`sequence_kl_loss`", sequence_kl),
    _of("reverse_kl_token", "`kl_in_loss`", O.kl_in_loss, coef=1.0),
    _of("expected_reward", "`reinforce`", O.reinforce),
    _of("entropy", "`entropy_loss`", O.entropy_loss, coef=1.0),
    _of("entropy_sequence", "`sequence_entropy_loss`", sequence_entropy),
)

"""Losses derived, on paper, from each candidate: importance weights turn samples into its gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from klent import objectives as O
from klent.audit import certify


def ratio(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """exp of the difference, without gradient, 1 off the mask."""
    return torch.where(mask, one - other, 0.0).detach().exp()


def likelihood_of_reference(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """-E over the reference of log p: the product of its ratios turns the samples into the reference's."""
    return -ratio(logp_ref, logp_old, mask).cumprod(dim=1) * logp


def sequence_entropy(logp: Tensor, mask: Tensor) -> Tensor:
    """∇H = -E[log P(y)·∇log P(y)]."""
    return -torch.where(mask, logp, 0.0).sum(dim=1, keepdim=True).detach() * logp


def token_entropy(logp: Tensor, mask: Tensor) -> Tensor:
    """-log p²/2, k2 to a reference that is flat."""
    return -(logp**2) / 2


def reward_of_sequences(logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE with the ratio of the whole sequence."""
    return -ratio(logp, logp_old, mask).prod(dim=1, keepdim=True) * advantage * logp


def reward_of_tokens(logp: Tensor, logp_old: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE with each token's own ratio: TRPO's surrogate."""
    return -ratio(logp, logp_old, mask) * advantage * logp


def total_variation(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """½Σ|p - q| = E over the sampler of |p - q| / 2m."""
    return ratio(logp, logp_old, mask) * (logp - logp_ref).abs() / 2


def kl_with_the_state_ratio(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    """k2 weighed by the ratio of the token and of all before it: prefixes as the policy would meet them."""
    return ratio(logp, logp_old, mask).cumprod(dim=1) * (logp - logp_ref) ** 2 / 2


def kl_to_behaviour(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """k2 to the behaviour policy, weighed by the token's ratio."""
    return ratio(logp, logp_old, mask) * (logp - logp_old) ** 2 / 2


def kl_of_sequences_to_behaviour(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """log P/Q·log P, weighed by the sequence's ratio."""
    gap = torch.where(mask, logp - logp_old, 0.0).sum(dim=1, keepdim=True).detach()
    return gap.exp() * gap * logp


Case = tuple[Callable[..., Any], str, float, str, float, str]
CASES: list[Case] = [
    # loss, on-policy and its weight, off-policy and its weight, prefixes off-policy
    (likelihood_of_reference, "forward_kl", 1, "forward_kl", 1, "policy"),
    (sequence_entropy, "entropy_sequence", 1, "unknown", 0, "policy"),
    (token_entropy, "entropy", 1, "unknown", 0, "policy"),
    (reward_of_sequences, "expected_reward", -1, "expected_reward", -1, "policy"),
    (reward_of_tokens, "expected_reward", -1, "expected_reward_token", -1, "behaviour"),
    (total_variation, "total_variation_token", 1, "total_variation_token", 1, "behaviour"),
    (kl_with_the_state_ratio, "reverse_kl_token", 1, "reverse_kl_token", 1, "policy"),
    (kl_to_behaviour, "zero", 0, "reverse_kl_token_old", 1, "behaviour"),
    (kl_of_sequences_to_behaviour, "zero", 0, "reverse_kl_old", 1, "policy"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_loss_derived_from_a_candidate_is_recognised(case: Case) -> None:
    loss, on, on_weight, off, off_weight, prefixes = case
    certificate = certify(loss)
    for finding, name, weight in (
        (certificate.on_policy, on, on_weight),
        (certificate.off_policy, off, off_weight),
    ):
        assert finding.follows == name
        if weight:
            assert finding.coefficients == pytest.approx({name: weight})
            assert finding.relative_error < 1e-10
    assert certificate.off_policy.prefixes == prefixes


def test_one_token_is_told_apart_from_sequences() -> None:
    off_policy = certify(reward_of_tokens).off_policy
    assert off_policy.one_position.coefficients == pytest.approx({"expected_reward": -1})
    assert (
        certify(O.ppo_clip, clip_low=1.0, clip_high=float("inf")).off_policy.follows
        == "expected_reward_token"
    )
    product = certify(O.ppo_clip).off_policy
    assert (product.follows, product.one_position.follows) == ("unknown", "unknown")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("reinforce", {}),
        ("ppo_clip", {}),
        ("ppo_clip", {"ratio": "sequence"}),
        ("ppo_clip", {"dual_clip": 3.0}),
        ("cispo", {}),
    ],
)
def test_policy_gradients_follow_the_reward_on_policy(name: str, settings: dict[str, Any]) -> None:
    certificate = certify(getattr(O, name), **settings)
    assert certificate.on_policy.follows == "expected_reward"
    assert certificate.on_policy.coefficients == pytest.approx({"expected_reward": -1})
    assert not certificate.restoring_force


@pytest.mark.parametrize("coef", [1.0, -0.01])
def test_entropy_loss(coef: float) -> None:
    certificate = certify(O.entropy_loss, coef=coef)
    for finding in certificate.on_policy, certificate.off_policy:
        assert finding.follows == "entropy"
        assert finding.coefficients == pytest.approx({"entropy": coef})
    assert not certificate.restoring_force


def test_cross_entropy_is_noise_on_policy_and_the_likelihood_of_the_samples_off_policy() -> None:
    certificate = certify(O.cross_entropy)
    assert certificate.on_policy.follows == "zero"
    assert certificate.on_policy.variance > 1
    assert certificate.off_policy.coefficients == pytest.approx({"forward_kl_old": 1})

"""Random linear combinations of what a loss can follow are taken apart again."""

import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from klent.audit import certify

# name -> (loss per token with samples from the policy, its weight in that candidate)
TERMS = {
    "reverse_kl": lambda s: to_go(s["delta"], s["mask"]).detach() * s["logp"],
    "reverse_kl_token": lambda s: s["delta"] ** 2 / 2,
    "forward_kl": lambda s: -(-s["delta"]).exp().cumprod(dim=1).detach() * s["logp"],
    "forward_kl_token": lambda s: (-s["delta"]).exp() - 1 + s["delta"],
    "total_variation_token": lambda s: s["delta"].abs() / 2,
    "entropy": lambda s: s["entropy"],
    "entropy_sequence": lambda s: -to_go(s["logp"], s["mask"]).detach() * s["logp"],
    "expected_reward": lambda s: s["advantage"] * s["logp"],
}
# the same with samples from the behaviour policy; prefixes are then the behaviour's
OFF_POLICY_TERMS = {
    "reverse_kl_token": lambda s: s["rho"] * ((-s["delta"]).exp() - 1 + s["delta"]),
    "forward_kl_token": lambda s: s["rho"].detach() * ((-s["delta"]).exp() - 1 + s["delta"]),
    "entropy": lambda s: s["entropy"],
    "expected_reward_token": lambda s: s["rho"] * s["advantage"],
    "reverse_kl_token_old": lambda s: s["rho"] * (1 / s["rho"] - 1 + s["rho"].log()),
    "forward_kl_old": lambda s: -s["logp"],
}
weights = st.floats(0.02, 3).flatmap(lambda size: st.sampled_from([size, -size]))


def to_go(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).flip(1).cumsum(dim=1).flip(1)


def combine(terms: dict, mixture: dict[str, float]):  # type: ignore[no-untyped-def, type-arg]
    def loss(
        logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantage: Tensor, entropy: Tensor, mask: Tensor
    ) -> Tensor:
        streams = {
            "logp": logp,
            "delta": logp - logp_ref,
            "rho": (logp - logp_old).exp(),
            "advantage": advantage,
            "entropy": entropy,
            "mask": mask,
        }
        return sum((weight * terms[name](streams) for name, weight in mixture.items()), torch.zeros(()))

    return loss


@settings(deadline=None, max_examples=16)
@given(st.dictionaries(st.sampled_from(sorted(TERMS)), weights, min_size=1, max_size=4))
def test_mixtures_on_policy(mixture: dict[str, float]) -> None:
    found = certify(combine(TERMS, mixture)).on_policy
    assert found.follows == ("combination" if len(mixture) > 1 else next(iter(mixture)))
    assert found.relative_error < 1e-9
    assert set(found.coefficients) == set(mixture)
    for name, weight in mixture.items():
        assert math.isclose(found.coefficients[name], weight, rel_tol=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.dictionaries(st.sampled_from(sorted(OFF_POLICY_TERMS)), weights, min_size=1, max_size=3))
def test_mixtures_off_policy(mixture: dict[str, float]) -> None:
    found = certify(combine(OFF_POLICY_TERMS, mixture)).off_policy
    assert set(found.coefficients) == set(mixture)
    for name, weight in mixture.items():
        assert math.isclose(found.coefficients[name], weight, rel_tol=1e-6)
    if set(mixture) != {"forward_kl_old"}:
        assert found.prefixes == "behaviour"


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.dictionaries(st.sampled_from(sorted(TERMS)), weights, min_size=1, max_size=2),
)
def test_anything_added_makes_it_unknown(shape: list[float], mixture: dict[str, float]) -> None:
    """A smooth function of δ that is no combination: its mean gradient must not be explained away."""
    assume(max(abs(x) for x in shape) > 0.05)
    known = combine(TERMS, mixture)

    def loss(
        logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantage: Tensor, entropy: Tensor, mask: Tensor
    ) -> Tensor:
        delta = logp - logp_ref
        strange = shape[0] * delta.sin() + shape[1] * delta**4 + shape[2] * (2 * delta).tanh()
        return known(logp, logp_old, logp_ref, advantage, entropy, mask) + strange

    assert certify(loss).on_policy.follows == "unknown"

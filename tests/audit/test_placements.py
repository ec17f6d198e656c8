"""Every place of a KL penalty, judged by the auditor and by hand: in another world, with separate logits."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from oracles import audit as oracle
from oracles import world

from klent import objectives as O
from klent.audit import Certificate, Match, certify, in_reward
from klent.audit.placements import penalty, plain, weighted, weighted_reward

ESTIMATORS = ("k1", "k2", "k3")
# place -> (on-policy, off-policy), as the literature has it for one token and as sequences add to it
EXPECTED = {
    "k1 in loss": ("zero", "forward_kl_old"),
    "k2 in loss": ("reverse_kl_token", "unknown"),
    "k3 in loss": ("forward_kl_token", "unknown"),
    "k1 in loss times rho": ("reverse_kl_token", "reverse_kl_token"),
    "k2 in loss times rho": ("unknown", "unknown"),
    "k3 in loss times rho": ("reverse_kl_token", "reverse_kl_token"),
    "k1 in loss times number": ("zero", "zero"),
    "k2 in loss times number": ("reverse_kl_token", "reverse_kl_token"),
    "k3 in loss times number": ("forward_kl_token", "forward_kl_token"),
    "k1 in reward": ("reverse_kl_token", "unknown"),
    "k2 in reward": ("unknown", "unknown"),
    "k3 in reward": ("combination", "unknown"),
    "k1 in reward to go": ("reverse_kl", "unknown"),
    "k2 in reward to go": ("unknown", "unknown"),
    "k3 in reward to go": ("combination", "unknown"),
    "k1 in reward times rho": ("reverse_kl_token", "reverse_kl_token"),
    "k1 in reward to go times rho": ("reverse_kl", "unknown"),
    "k1 in reward to go times product": ("reverse_kl", "reverse_kl"),
}
NO_PULL = {place for place in EXPECTED if place.startswith(("k2 in reward", "k3 in reward"))} | {
    "k1 in loss",
    "k1 in loss times number",
}


@cache
def audited(place: str) -> Certificate:
    """The certificate of a place, computed once: three tests look at it."""
    estimator, _, where = place.partition(" in ")
    if where == "loss":
        return certify(plain, estimator=estimator)
    if where.startswith("loss"):
        return certify(weighted, estimator=estimator, differentiated=where.endswith("rho"))
    if "times" in where:
        over = "sequence" if where.endswith("product") else "token"
        return certify(weighted_reward, over=over, to_go="to go" in where)
    return certify(in_reward(penalty, to_go="to go" in where), estimator=estimator)


@pytest.mark.parametrize("place", EXPECTED)
def test_places_are_named(place: str) -> None:
    certificate = audited(place)
    assert (certificate.on_policy.follows, certificate.off_policy.follows) == EXPECTED[place]
    assert certificate.restoring_force == (place not in NO_PULL)
    if certificate.restoring_force and place != "k2 in loss times rho":
        assert certificate.stiffness == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("place", EXPECTED)
@pytest.mark.parametrize("where", ["on_policy", "off_policy"])
def test_places_agree_with_the_oracle(place: str, where: str) -> None:
    logits, reference = world.policy(0), world.policy(1)
    sampler = logits if where == "on_policy" else logits + 0.4 * world.policy(2)
    coefficient = oracle.coefficients(place, logits, reference, sampler)
    gradient = oracle.expected_gradient(coefficient, logits, sampler)
    match: Match = getattr(audited(place), where)
    if match.follows == "zero":
        assert np.abs(gradient).max() < 1e-12
    elif match.follows == "unknown":
        names = ["reverse_kl", "reverse_kl_token", "forward_kl", "forward_kl_token", "entropy"]
        for name in names if where == "on_policy" else [*names, "forward_kl_old", "reverse_kl_old"]:
            for prefixes in "policy", "behaviour":
                true = oracle.true_gradient(name, logits, reference, sampler, prefixes)
                assert oracle.leftover(gradient, true) > 1e-3, name
    else:
        stated = sum(
            weight * oracle.true_gradient(name, logits, reference, sampler, match.prefixes)
            for name, weight in match.coefficients.items()
        )
        np.testing.assert_allclose(gradient, stated, atol=1e-8)


def test_signs_and_sizes() -> None:
    assert audited("k1 in loss").off_policy.coefficients == pytest.approx({"forward_kl_old": -1})
    on_policy = audited("k3 in reward to go").on_policy
    assert on_policy.coefficients == pytest.approx({"reverse_kl": 1, "forward_kl_token": -1})
    on_policy = audited("k3 in reward").on_policy
    assert on_policy.coefficients == pytest.approx({"reverse_kl_token": 1, "forward_kl_token": -1})


@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_kl_in_loss_is_what_it_says(divergence: str) -> None:
    certificate = certify(O.kl_in_loss, coef=0.25, divergence=divergence)
    for finding in certificate.on_policy, certificate.off_policy:
        assert finding.coefficients == pytest.approx({f"{divergence}_kl_token": 0.25})
        assert finding.one_position.coefficients == pytest.approx({f"{divergence}_kl": 0.25})
        assert finding.relative_error < 1e-12
    assert certificate.off_policy.prefixes == "behaviour"  # never claimed to be exact for sequences
    assert certificate.stiffness == pytest.approx(0.25, rel=1e-3)
    assert certificate.notes[-1].startswith("Off-policy the prefixes are those that the behaviour policy met")


def test_kl_in_reward_is_what_it_says() -> None:
    on_policy = certify(in_reward(O.kl_in_reward), coef=0.5).on_policy
    assert on_policy.coefficients == pytest.approx({"reverse_kl": 0.5})


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clamps_far_from_the_reference_are_seen(estimator: str) -> None:
    def clamped(logp: Any, logp_ref: Any, mask: Any) -> Any:
        return O.kl_estimate(logp, logp + (logp_ref - logp).clamp(-10, 10), estimator=estimator)  # type: ignore[arg-type]

    far = certify(clamped).on_policy.far_error
    whole = certify(plain, estimator=estimator).on_policy.far_error
    assert whole < 1e-6
    assert far > 0.1

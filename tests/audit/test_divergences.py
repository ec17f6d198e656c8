"""Every divergence is recognised, of tokens and of sequences, on- and off-policy; sums with a rare one too."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from klent import objectives as O
from klent.audit import certify, measures
from klent.audit.candidates import MEANING, RARE
from klent.audit.divergences import DIVERGENCES
from klent.audit.placements import Placement

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
KL_PQ, KL_QP = (P * np.log(P / Q)).sum(), (Q * np.log(Q / P)).sum()
M = (P + Q) / 2
#: by hand, for P and Q
VALUES = {
    "reverse_kl": KL_PQ,
    "forward_kl": KL_QP,
    "total_variation": 0.4,
    "jeffreys_kl": KL_PQ + KL_QP,
    "skewed_kl": (P * np.log(P / (0.1 * P + 0.9 * Q))).sum(),
    "chi_squared": ((P - Q) ** 2 / Q).sum(),
    "chi_squared_forward": ((P - Q) ** 2 / P).sum(),
    "jensen_shannon": ((P * np.log(P / M)).sum() + (Q * np.log(Q / M)).sum()) / 2,
    "hellinger": ((P**0.5 - Q**0.5) ** 2).sum() / 2,
    **{f"alpha_{a}": ((P**a * Q ** (1 - a)).sum() - 1) / (a * (a - 1)) for a in (0.25, 0.75, 1.5)},
}


def test_the_measures_are_those_of_their_formulas() -> None:
    known = {**measures.COMMON, **measures.RARE}
    assert set(known) == set(VALUES)
    for name, value in VALUES.items():
        found = known[name](torch.from_numpy(np.log(P)), torch.from_numpy(np.log(Q)))
        assert found.item() == pytest.approx(value), name
    assert measures.entropy(torch.full((4,), -math.log(4)), torch.zeros(4)).item() == pytest.approx(
        math.log(4)
    )


#: dD/dp of a token as a function of log p and log q, up to a constant: what a score function weighs by
WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "chi_squared": lambda p, q: 2 * (p - q).exp(),
    "chi_squared_forward": lambda p, q: -(2 * (q - p)).exp(),
    "jensen_shannon": lambda p, q: (p - torch.logaddexp(p, q)) / 2,
    "hellinger": lambda p, q: -((q - p) / 2).exp() / 2,
    "jeffreys_kl": lambda p, q: p - q - (q - p).exp(),
    "total_variation": lambda p, q: (p - q).sign() / 2,
    "alpha_0.25": lambda p, q: (-0.75 * (p - q)).exp() / -0.75,
    "alpha_0.75": lambda p, q: (-0.25 * (p - q)).exp() / -0.25,
    "alpha_1.5": lambda p, q: (0.5 * (p - q)).exp() / 0.5,
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("of", ["token", "sequence"])
def test_score_functions_are_recognised(name: str, of: str) -> None:
    def loss(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        p, b, q = (torch.where(mask, x, 0.0).detach() for x in (logp, logp_old, logp_ref))
        if of == "sequence":
            p, b, q = (x.sum(dim=1, keepdim=True) for x in (p, b, q))
        return (p - b).exp() * WEIGHTS[name](p, q) * logp

    found = certify(loss)
    for match in found.on_policy, found.off_policy:
        assert match.coefficients == pytest.approx({f"{name}_token" if of == "token" else name: 1})
        assert match.relative_error < 1e-9
    assert found.off_policy.one_position.coefficients == pytest.approx({name: 1})
    assert found.off_policy.prefixes == ("behaviour" if of == "token" else "policy")


@pytest.mark.parametrize("placement", DIVERGENCES, ids=lambda p: f"{p.aim}: {p.name}")
def test_what_is_called_exact_is(placement: Placement) -> None:
    """On-policy all but those that are token by token and aim at sequences; off-policy those with full ratios."""
    certificate = placement.certificate()
    by_token = placement.loss in (O.kl_in_loss, O.entropy_loss) and not placement.aim.endswith("token")
    if by_token and placement.aim != "entropy":
        assert (
            min(certificate.on_policy.bias[placement.aim], certificate.off_policy.bias[placement.aim]) > 0.1
        )
        return
    assert certificate.on_policy.follows == placement.aim
    assert certificate.on_policy.coefficients == pytest.approx({placement.aim: 1})
    biased = placement.name in ("k2 in the loss", "k3 in the loss", "k1 in the reward, to go") or (
        placement.name == "k1 in the reward, to go, ρ of the token"
    )
    assert certificate.off_policy.follows == ("unknown" if biased else placement.aim)


def test_sequence_losses_are_exact_from_any_sampler() -> None:
    by_gen = certify(O.sequence_kl_loss, coef=0.5)
    assert by_gen.off_policy.coefficients == pytest.approx({"reverse_kl": 0.5})
    assert by_gen.off_policy.prefixes == "policy"
    assert by_gen.stiffness == pytest.approx(0.5, rel=1e-3)
    assert "kl" in by_gen.reads
    assert certify(O.sequence_kl_loss, coef=1.0, weight_max=1.0).off_policy.follows == "unknown"
    bonus = certify(O.sequence_entropy_loss, coef=-0.1)
    for match in bonus.on_policy, bonus.off_policy:
        assert match.coefficients == pytest.approx({"entropy_sequence": -0.1})


def test_a_combination_holds_at_most_one_rare_divergence() -> None:
    def loss(logp: Tensor, advantage: Tensor, jeffreys_kl: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
        return -advantage * logp + 0.5 * jeffreys_kl - 0.1 * entropy

    def hellinger(logp: Tensor, logp_ref: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return -(advantage + ((logp_ref - logp) / 2).detach().exp() / 2) * logp

    found = certify(loss).on_policy.coefficients  # two usual ones before one rare one
    expected = {"reverse_kl_token": 0.5, "forward_kl_token": 0.5, "entropy": -0.1, "expected_reward": -1}
    assert found == pytest.approx(expected)
    assert certify(hellinger).on_policy.coefficients == pytest.approx(
        {"hellinger_token": 1, "expected_reward": -1}
    )
    assert "hellinger_token" in RARE
    assert set(MEANING) > RARE

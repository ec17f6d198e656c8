"""The reduction is certified with the loss: a divisor of its own for each completion changes the direction."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from oracles import lengths as oracle
from torch import Tensor

from klent import objectives as O
from klent.audit import certify, in_reward
from klent.audit.call import wire
from klent.audit.expectation import expected_gradient
from klent.audit.reduction import _of_batches, compare, reduced
from klent.audit.worlds import Scene, build_world

K1 = in_reward(O.kl_in_reward)


def scene() -> Scene:
    """The oracle's language, its three prefixes told apart."""
    world = build_world(3, 2, stop=True)
    random = np.random.default_rng(4)
    policy, reference = (torch.from_numpy(random.normal(size=(3, 3))) for _ in range(2))
    return Scene(
        world,
        torch.eye(3, dtype=torch.float64),
        policy,
        reference,
        policy,
        torch.zeros(7, dtype=torch.float64),
    )


def test_k1_in_the_reward_is_the_sequences_kl_only_under_a_constant_divisor() -> None:
    for reduce in (None, "constant", "tokens"):
        assert certify(K1, coef=0.5, reduce=reduce).on_policy.coefficients == pytest.approx(
            {"reverse_kl": 0.5}
        )
    found = certify(K1, coef=0.5, reduce="sequences")
    assert found.on_policy.follows == found.off_policy.follows == "unknown"
    assert found.reduction is not None
    assert found.reduction.unexplained["on_policy"] == pytest.approx(0.16, abs=0.005)
    assert any("divides each completion by its own length: 0.16" in note for note in found.notes)
    assert found.on_policy.one_position.follows == "reverse_kl"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_reductions_agree_with_a_list_by_hand(size: int) -> None:
    listed = scene()
    chances, rows = oracle.gradients(listed.policy.numpy(), listed.reference.numpy())
    loss = wire(K1, {"coef": 1.0})
    for over in ("constant", "sequences"):
        found = expected_gradient(reduced(loss, over), listed).gradient
        np.testing.assert_allclose(found, oracle.mean(over, chances, rows, size=size), atol=1e-12)
    mean_length = chances @ np.array([len(row) for row in oracle.ROWS])
    batch, _ = _of_batches(loss, [listed], size)
    np.testing.assert_allclose(
        batch, mean_length * oracle.mean("tokens", chances, rows, size=size), atol=1e-12
    )


def test_a_function_of_two_completions_is_its_own_gradient() -> None:
    listed = scene()
    chances, rows = oracle.gradients(listed.policy.numpy(), listed.reference.numpy())
    loss = wire(K1, {"coef": 1.0})
    mean = reduced(loss, lambda loss, mask: loss.sum() / mask.sum())
    expected = oracle.mean("tokens", chances, rows, size=2)
    np.testing.assert_allclose(expected_gradient(mean, listed).gradient, expected, atol=1e-12)


def test_the_bias_of_a_finite_batch_falls_with_its_size() -> None:
    found = compare(wire(O.kl_in_loss, {"coef": 1.0}), "tokens")
    assert found is not None
    assert list(found.batches) == [2, 16, 64]
    two, sixteen, most = found.batches.values()
    assert two > 5 * sixteen > 15 * most > 0
    assert found.unexplained == {"on_policy": 0.0, "off_policy": 0.0}


def test_a_loss_may_undo_the_division() -> None:
    def times_length(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return mask.sum(dim=1, keepdim=True) * (logp - logp_ref) ** 2 / 2

    found = certify(times_length, reduce="sequences")
    assert found.on_policy.follows == "reverse_kl_token"
    assert certify(times_length).on_policy.follows == "unknown"


def test_noise_in_the_sum_may_be_a_direction_in_the_mean() -> None:
    found = certify(lambda logp, mask: logp, reduce="sequences")
    assert found.reduction is not None
    assert certify(lambda logp, mask: logp).on_policy.follows == "zero"
    assert found.reduction.unexplained["on_policy"] == 1.0


@pytest.mark.parametrize(
    ("reduce", "problem"),
    [
        ("token", "cannot be reduced over 'token'; it is one of tokens, sequences, constant, or a function"),
        (lambda loss, mask: loss, r"the reduction returned shape \[2, 3\], expected a scalar"),
        (lambda loss, mask: loss.summ(), "cannot be reduced: AttributeError"),
        (lambda loss, mask: 1.0, "the reduction returned float"),
    ],
)
def test_reductions_that_are_none(reduce: Any, problem: str) -> None:
    assert re.search(problem, certify(K1, coef=1.0, reduce=reduce).problem or "")

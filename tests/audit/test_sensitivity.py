"""What a loss does with padding, with parts of a batch, with its inputs and with fewer bits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from klent import objectives as O
from klent.audit import Certificate, Sensitivity, certify
from klent.audit.call import wire
from klent.audit.sensitivity import sensitivity as measure
from klent.audit.worlds import unequal_lengths


def sensitivity(loss: Callable[..., Any], **settings: Any) -> Sensitivity:
    return measure(wire(loss, settings), unequal_lengths()[0])


def test_klents_own_objectives_are_clean() -> None:
    for loss, settings in ((O.kl_in_loss, {"coef": 1.0}), (O.ppo_clip, {}), (O.entropy_loss, {"coef": 1.0})):
        known = sensitivity(loss, **settings)
        assert (known.padding, known.split, known.changed, known.random) == ("ignored", "additive", (), False)
        assert known.float32 < 1e-5
        assert known.bfloat16 < 0.1
        assert known.dtype is None


def test_padding_that_is_read() -> None:
    def mean_over_all(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        delta = logp - logp_ref
        return (delta - delta.mean(dim=1, keepdim=True)).detach() * logp

    def times_width(logp: Tensor, mask: Tensor) -> Tensor:
        return logp.detach() * logp / logp.shape[1]

    assert sensitivity(mean_over_all).padding == "read"
    assert sensitivity(times_width).padding == "read"  # more padding makes it smaller


def test_nan_in_the_padding() -> None:
    def unmasked(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return (logp - logp_ref) ** 2

    def masked(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, logp - logp_ref, 0.0) ** 2

    assert sensitivity(unmasked).padding == "nan"
    assert sensitivity(masked).padding == "ignored"


def test_a_batch_mean_depends_on_the_split() -> None:
    def centred(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return -(advantage - (advantage * mask).sum() / mask.sum()) * logp

    def token_mean(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return -advantage * logp / mask.sum()

    def first_row(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return -advantage[:1] * logp

    for loss in centred, token_mean, first_row:
        assert sensitivity(loss).split == "dependent"


def test_inputs_that_are_changed() -> None:
    def in_place(logp: Tensor, logp_ref: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        advantage -= 1.0
        logp_ref.clamp_(min=-1.0)
        return (logp - logp_ref) ** 2 * advantage

    def on_the_graph(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return logp.sub_(logp_ref) ** 2 / 2

    assert sensitivity(in_place).changed == ("logp_ref", "advantage")
    found = certify(on_the_graph)
    assert found.sensitivity is not None
    assert found.sensitivity.changed == ("logp",)
    assert found.on_policy.follows == "reverse_kl_token"
    assert "CHANGED: logp" in str(found)


def test_randomness_is_noticed_and_leaves_the_generator_alone() -> None:
    def dropout(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return (logp - logp_ref) ** 2 * (torch.rand(logp.shape) < 0.5)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert sensitivity(dropout).random
    assert torch.equal(torch.rand(3), expected)


def test_few_bits() -> None:
    def small_differences(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return ((logp + 1e6) - (logp_ref + 1e6)) ** 2

    def double_only(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        if logp.dtype != torch.float64:
            raise TypeError("float64 please")
        return (logp - logp_ref) ** 2

    def upcast(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return (20 * (logp.double() - logp_ref.double())).exp()

    assert sensitivity(upcast).bfloat16 < 5e-3  # the rounding of what it is given is not its fault
    assert sensitivity(small_differences).float32 > 1e-2
    known = sensitivity(double_only)
    assert math.isnan(known.float32)
    assert "float32 fails" in str(certify(double_only))


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_the_order_of_the_pull(power: int) -> None:
    def loss(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return (logp - logp_ref).abs() ** power / power

    found: Certificate = certify(loss)
    assert found.restoring_force == (power <= 2)
    assert (found.stiffness == math.inf) == (power == 1)


def test_a_pull_is_measured_beside_a_reward() -> None:
    def loss(logp: Tensor, logp_ref: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return -advantage * logp + 1e-3 * (logp - logp_ref) ** 2 / 2

    assert certify(loss).stiffness == pytest.approx(1e-3, rel=1e-2)

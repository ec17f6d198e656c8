"""Where a loss is flat is found to many digits, with the share of tokens that it concerns; and what to write."""

import math

import pytest
from torch import Tensor

from klent import objectives as O
from klent.audit import certify, in_reward
from klent.audit.call import Loss, wire
from klent.audit.flat import flat_intervals
from klent.audit.worlds import equal_lengths, sample, unequal_lengths


def k3(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    return (logp_ref - logp).exp() - 1 - (logp_ref - logp)


def verls_k3(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    gap = (logp_ref - logp).clamp(-20, 20)
    return (gap.exp() - gap - 1).clamp(-10, 10)


def test_both_ends_of_a_clamp() -> None:
    below, above = flat_intervals(wire(verls_k3, {}))
    assert (below.other, below.low, above.high) == ("logp_ref", -math.inf, math.inf)
    for end in below.high, above.low:  # k3 is 10 there
        assert math.exp(-end) - 1 + end == pytest.approx(10, rel=1e-4)
    assert below.share == above.share == 0  # and no token of the small worlds is
    assert above.far_share > 0.3


def test_the_share_is_that_of_the_sampled_tokens() -> None:
    def capped(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return k3(logp, logp_ref, mask).clamp(max=0.5)

    below, above = flat_intervals(wire(capped, {}))
    inside = total = 0.0
    for scene in (*equal_lengths(), *unequal_lengths()):
        listed = sample(scene)
        mask = listed.streams["mask"]
        worth = k3(listed.streams["logp"], listed.streams["logp_ref"], mask)
        inside += (listed.probability @ ((worth > 0.5) & mask).sum(dim=1).double()).item()
        total += (listed.probability @ mask.sum(dim=1).double()).item()
    assert below.share + above.share == pytest.approx(inside / total)
    notes = certify(capped).notes
    assert sum(note.startswith("Flat, as if clamped") for note in notes) == 2
    assert any(f"logp - logp_ref is above {above.low:.4g}." in note for note in notes)


def test_the_clip_of_ppo_has_a_side_for_each_sign() -> None:
    found = {
        one.advantage: one for one in flat_intervals(wire(O.ppo_clip, {"clip_low": 0.2, "clip_high": 0.3}))
    }
    assert found[1.0].low == pytest.approx(math.log(1.3), abs=1e-5)
    assert found[-1.0].high == pytest.approx(math.log(0.8), abs=1e-5)
    assert (found[1.0].other, found[1.0].high, found[-1.0].low) == ("logp_old", math.inf, -math.inf)
    assert 0 < found[1.0].share < 1


def test_a_clamp_inside_a_sum_is_seen() -> None:
    def loss(logp: Tensor, logp_ref: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        return -advantage * logp + 0.1 * verls_k3(logp, logp_ref, mask)

    assert len(flat_intervals(wire(loss, {}))) == 2
    assert len(certify(loss).flat) == 2


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (k3, {}),
        (in_reward(O.kl_in_reward), {"coef": 1.0}),
        (O.kl_in_loss, {"coef": 1.0}),
        (O.cispo, {}),
        (O.sequence_kl_loss, {"coef": 1.0}),
    ],
)
def test_what_has_a_slope_everywhere_is_not_flat(loss: object, settings: dict[str, object]) -> None:
    assert callable(loss)
    assert flat_intervals(wire(loss, settings)) == ()


def test_what_cannot_be_tried_is_not_judged() -> None:
    def of_two(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        assert len(mask) == 2
        return (logp - logp_ref).clamp(-1, 1)

    def breaks(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        assert (logp - logp_ref).abs().max() < 3
        return (logp - logp_ref).clamp(-1, 1)

    names: dict[str | int, str] = {name: name for name in ("logp", "logp_ref", "mask")}
    assert flat_intervals(Loss(of_two, wiring=names, rows=2)) == ()
    assert flat_intervals(wire(breaks, {})) == ()


def advice(loss: object, **settings: object) -> str:
    assert callable(loss)
    return " ".join(certify(loss, reduce=None, **settings).advice)


def test_what_to_write_instead() -> None:
    said = advice(k3)
    assert "follows the forward KL and no divergence at all off-policy" in said
    assert "for the reverse KL write kl_in_loss(..., logp_old=logp_old)" in said.replace("For", "for")
    assert "sequence_kl_loss(logp, kl, mask, logp_gen=logp_gen)" in said
    assert "does nothing on-policy" in advice(lambda logp, logp_ref, mask: logp - logp_ref)
    assert "follows no divergence" in advice(lambda logp, logp_ref, mask: (logp - logp_ref) ** 4)
    assert advice(lambda logp, logp_ref, mask: (logp - logp_ref) ** 2).startswith(
        "Off-policy it follows nothing"
    )
    assert "Off-policy it follows nothing: write sequence_kl_loss" in advice(
        in_reward(O.kl_in_reward), coef=1.0
    )
    assert "exact token by token" in advice(O.kl_in_loss, coef=1.0)
    assert "write entropy_loss" in advice(lambda logp, mask: -(logp**2))


def test_nothing_is_said_of_what_is_right() -> None:
    assert advice(O.sequence_kl_loss, coef=1.0) == ""
    assert advice(O.entropy_loss, coef=1.0) == ""
    assert advice(O.ppo_clip) == ""  # it is clipped on purpose


def test_a_mean_over_sequences_gets_its_line() -> None:
    for loss, settings in ((in_reward(O.kl_in_reward), {"coef": 1.0}), (O.entropy_loss, {"coef": 1.0})):
        found = certify(loss, reduce="sequences", **settings)
        assert found.advice[-1].startswith("Average with reduce.over: constant")
        assert not any("no divergence" in line for line in found.advice)

"""What a certificate says of losses that somebody might write."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from klent.audit import Certificate, certify, in_reward
from klent.audit.names import STREAMS, is_alias, stream_of


def k2(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    return (logp - logp_ref) ** 2 / 2


def k3(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
    return (logp_ref - logp).exp() - 1 - (logp_ref - logp)


def test_pinned_examples() -> None:
    found = certify(k2)
    assert found.on_policy.follows == "reverse_kl_token"
    assert found.on_policy.coefficients == pytest.approx({"reverse_kl_token": 1.0})
    assert found.on_policy.one_position.follows == "reverse_kl"
    assert found.on_policy.relative_error < 1e-12
    assert found.on_policy.cosine["reverse_kl_token"] == pytest.approx(1)
    assert found.on_policy.cosine["reverse_kl"] < 0.9999  # sequences tell it from the KL of whole sequences
    assert found.restoring_force
    negative = certify(lambda logp, logp_ref, mask: -k2(logp, logp, logp_ref, mask))
    assert negative.on_policy.coefficients == pytest.approx({"reverse_kl_token": -1.0})
    assert not negative.restoring_force  # it pushes away


def test_a_combination_is_taken_apart() -> None:
    def loss(logp: Tensor, logp_ref: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
        return 0.3 * (logp - logp_ref) ** 2 / 2 - 0.1 * entropy

    found = certify(loss)
    assert found.on_policy.follows == "combination"
    assert found.on_policy.coefficients == pytest.approx({"reverse_kl_token": 0.3, "entropy": -0.1})
    assert found.on_policy.one_position.coefficients == pytest.approx({"reverse_kl": 0.3, "entropy": -0.1})
    assert found.stiffness == pytest.approx(0.3, rel=1e-3)  # the bonus is no pull to the reference


def test_grpo_with_its_kl_term() -> None:
    def loss(
        logp: Tensor, logp_old: Tensor, logp_ref: Tensor, advantage: Tensor, mask: Tensor, beta: float
    ) -> Tensor:
        ratio = (logp - logp_old).exp()
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
        return -surrogate + beta * k3(logp, logp_ref, mask)

    found = certify(loss, beta=0.04)
    assert found.on_policy.coefficients == pytest.approx({"forward_kl_token": 0.04, "expected_reward": -1})
    assert found.off_policy.follows == "unknown"
    assert found.restoring_force


@pytest.mark.parametrize("power", [3, 4, 1.5], ids=str)  # E[sign·|δ|^(p-1)·s] is the gradient of no candidate
def test_an_unknown_function_stays_unknown(power: float) -> None:
    found = certify(lambda logp, logp_ref, mask: (logp - logp_ref).abs() ** power)
    assert found.on_policy.follows == found.off_policy.follows == "unknown"
    assert found.on_policy.coefficients == {}
    assert 0.01 < found.on_policy.relative_error < 1
    assert max(found.on_policy.cosine.values()) < 1


def test_a_part_per_million_is_not_overlooked() -> None:
    def loss(logp: Tensor, logp_ref: Tensor, mask: Tensor, error: float) -> Tensor:
        return k2(logp, logp, logp_ref, mask) + error * (logp - logp_ref) ** 4

    assert certify(loss, error=0.0).on_policy.follows == "reverse_kl_token"
    assert certify(loss, error=1e-4).on_policy.follows == "unknown"


def test_a_mean_over_each_completion_is_not_the_sum() -> None:
    def loss(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return k2(logp, logp, logp_ref, mask) / mask.sum(dim=1, keepdim=True)

    found = certify(loss)
    assert found.on_policy.follows == "unknown"
    assert found.on_policy.equal_lengths.coefficients == pytest.approx({"reverse_kl_token": 1 / 3})
    assert found.on_policy.one_position.coefficients == pytest.approx({"reverse_kl": 1})
    assert "equally long" in found.notes[0]


def test_a_loss_that_looks_at_the_whole_batch_is_given_pairs() -> None:
    def group_baseline(logp: Tensor, advantage: Tensor, mask: Tensor) -> Tensor:
        reward = advantage[:, :1]
        return -(reward - reward.mean(dim=0)) * logp

    found = certify(group_baseline)
    assert found.completions == "2"
    assert found.sensitivity is not None
    assert found.sensitivity.split == "dependent"
    # the own reward is half of the baseline of two: the gradient is half as long, and unbiased otherwise
    assert found.on_policy.coefficients == pytest.approx({"expected_reward": -0.5})
    assert "pairs of completions" in found.notes[0]


def test_zero_in_the_mean_is_not_zero_at_every_sample() -> None:
    assert "adds noise" in certify(lambda logp, mask: logp).notes[0]
    found = certify(lambda logp, mask: 0 * logp)
    assert (found.on_policy.follows, found.off_policy.follows) == ("zero", "zero")
    assert "zero at every sample" in found.notes[0]


def test_float32_inside_is_tolerated_and_told() -> None:
    found = certify(lambda logp, logp_ref, mask: k3(logp.float(), logp_ref.float(), mask))
    assert found.on_policy.follows == "forward_kl_token"
    assert found.sensitivity is not None
    assert found.sensitivity.dtype == "float32"
    assert "computes in float32" in found.notes[-1]


def test_an_overflow_far_away_is_a_note_not_a_problem() -> None:
    def overflowing(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return k2(logp, logp, logp_ref, mask) + 0 * (60 * (logp_ref - logp)).exp()

    found = certify(overflowing)
    assert found.problem is None
    assert found.on_policy.follows == "reverse_kl_token"
    assert found.on_policy.far_error == math.inf
    assert "overflows or raises" in found.notes[0]


def test_arguments_by_position() -> None:
    def named(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return k2(a, b, c, d)

    def hinted(logp: Tensor, old: Tensor, ref: Tensor, mask: Tensor, *, coef: float = 2.0) -> Tensor:
        return coef * k2(logp, old, ref, mask)

    found = certify(named)
    assert found.on_policy.coefficients == pytest.approx({"reverse_kl_token": 1})
    assert "logp, logp_old, logp_ref, mask" in found.notes[0]
    assert certify(hinted, coef=3.0).on_policy.coefficients == pytest.approx({"reverse_kl_token": 3})

    def swapped(old: Tensor, logp: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
        return k2(logp, old, ref, mask)

    assert "needs `old`" in (certify(swapped).problem or "")


def trl_style(
    per_token_logps: Tensor,
    old_per_token_logps: Tensor,
    ref_per_token_logps: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    beta: float = 0.04,
) -> Tensor:
    gap = ref_per_token_logps - per_token_logps
    ratio = (per_token_logps - old_per_token_logps).exp()
    return (-ratio * advantages + beta * (gap.exp() - gap - 1)) * completion_mask


def verl_style(
    old_log_prob: Tensor,
    log_prob: Tensor,
    ref_log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    entropies: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    assert entropies is not None
    kept = log_prob * (1 - (1 - response_mask))  # a bool mask cannot be subtracted from
    kl = (log_prob - ref_log_prob) ** 2 / 2
    loss = -(kept - old_log_prob).exp() * advantages + 0.04 * kl - 0.1 * entropies
    return loss * response_mask, {"actor/kl": 0.0}


def test_names_of_trl_and_verl_need_no_renaming() -> None:
    trl = certify(trl_style)
    assert trl.problem is None
    assert trl.reads == ("advantage", "logp", "logp_old", "logp_ref", "mask")
    assert trl.on_policy.coefficients == pytest.approx({"forward_kl_token": 0.04, "expected_reward": -1})
    assert "old_per_token_logps as logp_old" in trl.notes[0]
    assert "completion_mask as mask" in trl.notes[0]
    verl = certify(verl_style)
    assert verl.on_policy.coefficients == pytest.approx(
        {"reverse_kl_token": 0.04, "entropy": -0.1, "expected_reward": -1}
    )
    assert certify(trl_style, beta=0.0).on_policy.follows == "expected_reward"


def test_names_of_both_vocabularies_give_the_same_certificate() -> None:
    def renamed(log_prob: Tensor, ref_log_prob: Tensor, response_mask: Tensor) -> Tensor:
        return k3(log_prob, ref_log_prob, response_mask.bool())

    one, other = certify(k3), certify(renamed)
    assert (one.on_policy, one.off_policy, one.stiffness) == (
        other.on_policy,
        other.off_policy,
        other.stiffness,
    )

    def reward(log_prob: Tensor, ref_log_prob: Tensor, response_mask: Tensor) -> Tensor:
        return -(log_prob - ref_log_prob) * (1 - (1 - response_mask))

    assert certify(in_reward(reward)).on_policy.follows == "reverse_kl"


def test_in_place_changes_are_seen_under_other_names() -> None:
    def overwriting(log_prob: Tensor, ref_log_prob: Tensor, response_mask: Tensor) -> Tensor:
        ref_log_prob -= 1.0
        response_mask *= 2
        return (log_prob - ref_log_prob) ** 2

    known = certify(overwriting).sensitivity
    assert known is not None
    assert known.changed == ("logp_ref", "mask")


def test_the_hint_for_an_unknown_name_works_when_it_is_followed() -> None:
    def loss(logp: Tensor, old: Tensor, mask: Tensor) -> Tensor:
        return logp * (logp - old).detach()

    problem = certify(loss).problem or ""
    assert "if it is `logp_old`, give it that name" in problem
    assert "(old=...)" in problem
    assert certify(lambda logp, logp_old, mask: loss(logp, logp_old, mask)).problem is None
    assert certify(loss, old=0.0).problem is None

    def resembling(logp: Tensor, old: Tensor, ref: Tensor, mask: Tensor) -> Tensor:
        return k2(logp, old, ref, mask)

    assert "each resembles the one in its place" in problem
    assert certify(resembling).on_policy.follows == "reverse_kl_token"


def test_the_documented_names_are_read_and_those_of_other_things_are_not() -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    table = page.split("other names, for example")[1].split("A name is recognised")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert {row[1].strip(" `") for row in rows} == set(STREAMS)
    for row in rows:
        for alias in re.findall(r"`(\w+)`", row[4]):
            assert stream_of(alias) == row[1].strip(" `"), alias
            assert is_alias(alias)
    for other in re.findall(
        r"`(\w+)`",
        " ".join(page.split()).split("A name with any other word")[1].split("is taken as a setting")[0],
    ):
        assert stream_of(other) is None, other
    for other in (
        "logits",
        "old_ref_logps",
        "seq_logps",
        "epsilon",
        "padding_mask",
        "mask_ratio",
        "advantage_std",
    ):
        assert stream_of(other) is None, other


def test_a_loss_with_the_names_of_another_library_is_certified() -> None:
    def loss(policy_logps: Tensor, old_logps: Tensor, adv: Tensor, response_mask: Tensor) -> Tensor:
        return -(policy_logps - old_logps).exp() * adv * response_mask

    found = certify(loss)
    assert found.problem is None
    assert found.on_policy.coefficients == pytest.approx({"expected_reward": -1})


def test_callables_of_every_kind() -> None:
    class Module(torch.nn.Module):
        def forward(self, logp: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
            return k2(logp, logp, logp_ref, mask)

    def in_a_tuple(logp: Tensor, logp_ref: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        return k2(logp, logp, logp_ref, mask), {"metric": 1.0}

    def only_positional(logp: Tensor, logp_ref: Tensor, mask: Tensor, /) -> Tensor:
        return k2(logp, logp, logp_ref, mask)

    for loss in (Module().forward, in_a_tuple, only_positional):
        assert certify(loss).on_policy.follows == "reverse_kl_token"


def test_in_reward_takes_what_the_reward_takes() -> None:
    def reward(logp: Tensor, logp_ref: Tensor, mask: Tensor, *, coef: float) -> Tensor:
        return -coef * (logp - logp_ref)

    assert certify(in_reward(reward), coef=2.0).on_policy.coefficients == pytest.approx({"reverse_kl": 2})
    assert "needs `coef`" in (certify(in_reward(reward)).problem or "")


def test_certificates_are_plain_data_and_readable() -> None:
    found = certify(k2)
    text = json.dumps(found.to_dict(), allow_nan=False)
    known: dict[str, Any] = json.loads(text)
    assert known["on_policy"]["follows"] == "reverse_kl_token"
    assert known["off_policy"]["coefficients"] == {}
    assert known["sensitivity"]["split"] == "additive"
    assert known["problem"] is None
    assert "minimises KL(policy ‖ reference), token by token" in str(found)
    assert certify(k2) == found  # nothing is drawn anew
    endless = certify(lambda logp, logp_ref, mask: (logp - logp_ref).abs())
    assert math.isinf(endless.stiffness)
    assert json.loads(json.dumps(endless.to_dict(), allow_nan=False))["stiffness"] is None
    assert isinstance(found, Certificate)


def test_variance_orders_estimators() -> None:
    def weighted(logp: Tensor, logp_old: Tensor, logp_ref: Tensor, mask: Tensor) -> Tensor:
        return (logp - logp_old).exp() * (
            logp - logp_ref
        )  # k1 times a differentiated ratio: the same mean as k2

    assert certify(weighted).on_policy.follows == certify(k2).on_policy.follows
    assert certify(weighted).on_policy.variance > 2 * certify(k2).on_policy.variance

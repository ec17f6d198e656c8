"""An estimator that divides by the group's deviation weighs the reward against a KL anew in every group."""

import json
import math
from itertools import product

import numpy as np
import pytest
from torch import Tensor

from klent import objectives as O
from klent.audit import certify_advantage
from klent.audit.call import LossProblem
from klent.audit.command import audit_command


def by_hand(solved: float, size: int) -> float:
    """Weight of the reward under GRPO's advantage: every group of zeros and ones, one after another."""
    total = 0.0
    for group in product([0.0, 1.0], repeat=size):
        rewards = np.array(group)
        chance = np.prod(np.where(rewards == 1, solved, 1 - solved))
        spread = rewards.std(ddof=1)
        advantage = (rewards - rewards.mean()) / spread if spread else 0 * rewards
        score = np.where(rewards == 1, 1 / solved, -1 / (1 - solved))  # of log P(own reward), in P(solved)
        total += chance * (advantage * score).mean()
    return float(total)


def test_the_weight_of_the_reward_is_that_of_a_list_by_hand() -> None:
    found = certify_advantage(O.group_advantage, group_size=6, scale="std")
    for solved, weight in found.weights.items():
        assert weight == pytest.approx(by_hand(solved, 6))
    assert found.rescales
    assert found.ratio == pytest.approx(by_hand(0.05, 6) / by_hand(0.5, 6))
    assert "a factor of up to" in str(found)


def test_a_constant_factor_rescales_nothing() -> None:
    for size in (2, 3, 8):
        assert certify_advantage(O.leave_one_out, group_size=size).weights[0.5] == pytest.approx(1)
        centred = certify_advantage(O.group_advantage, group_size=size, scale="none")
        assert list(centred.weights.values()) == pytest.approx([(size - 1) / size] * 5)
        assert not centred.rescales
        assert centred.unexplained < 1e-12
        assert "scaled group by group" not in str(centred)


def test_two_answers_give_a_sign_and_so_another_direction() -> None:
    found = certify_advantage(O.group_advantage, group_size=2)
    assert list(found.weights.values()) == pytest.approx([math.sqrt(0.5)] * 5)
    assert found.unexplained > 0.1
    assert found.rescales


def test_what_cannot_be_called() -> None:
    def broken(rewards: Tensor, group: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(LossProblem, match="raised RuntimeError: no"):
        certify_advantage(broken)
    with pytest.raises(LossProblem, match="at least 2"):
        certify_advantage(O.leave_one_out, group_size=1)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit_command("group_advantage", ["group_size=4"], json=True, picture=None) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["group_size"] == 4
    assert known["rescales"] is True
    assert audit_command("klent.objectives:leave_one_out", [], json=False, picture=None) == 0
    assert "groups of 8" in capsys.readouterr().out
    assert audit_command("gae", [], json=False, picture=None) == 1
    assert "no certificate" in capsys.readouterr().out

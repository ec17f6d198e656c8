"""Pairs: the two rows that a loss reads together are never cut apart."""

import pytest
from helpers_training import episodes
from tiny import tiny_model

from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.streams.batch import Batch, make_batch

PAIRS = [0, 1, 1, 0, 2, 3, 2, 3, 4, 4, 5, 5]  # within each prompt's four completions, not always neighbours


def batch(unit: list[int] | None) -> Batch:
    return make_batch(episodes(), [0.0] * 12, group_size=4, unit=unit)


def cuts(unit: list[int] | None, budget: int, shared: bool, joined: int = 0) -> list[list[int]]:
    policy = CausalPolicy(tiny_model(), temperature=1.0, packing=Packing(shared, budget, joined))
    return policy.microbatches(batch(unit), range(12))


@pytest.mark.parametrize(("shared", "joined"), [(True, 0), (True, 90), (False, 0)])
@pytest.mark.parametrize("budget", [1, 40, 60, 90, 200, 4096])
def test_no_cut_parts_a_pair(budget, shared, joined):
    parts = cuts(PAIRS, budget, shared, joined)
    assert sorted(row for part in parts for row in part) == list(range(12))
    for part in parts:
        units = [PAIRS[row] for row in part]
        assert all(units.count(unit) == 2 for unit in units), (part, units)


def test_rows_that_are_units_alone_fill_small_budgets():
    assert len(cuts(None, 1, False)) == 12
    assert len(cuts(PAIRS, 1, False)) == 6


def test_the_cut_changes_no_number():
    for unit, joined in ((PAIRS, 0), (PAIRS, 60), (None, 0), (None, 60)):
        rows = batch(unit)
        policy = CausalPolicy(tiny_model(), temperature=1.0, packing=Packing(True, 60, joined))
        whole = policy.evaluate(rows, range(12)).logp
        for part in policy.microbatches(rows, range(12)):
            assert (policy.evaluate(rows, part).logp - whole[part]).abs().max() < 2e-5

"""Rows as columns: what is missing, damaged or not a number leaves no trace in a series."""

import math

import pytest

from klent.kit.tables import Table, step_of

ROWS = [
    {"step": 1, "a": 0.5, "b": 1},
    {"step": 2, "a": None, "b": 2.0},
    {"step": 4, "a": math.inf},
    {"step": 5, "a": True, "b": "3"},
    {"step": 9, "a": -1, "b": 4.0, "c": math.nan},
]


def test_series_leave_out_what_is_no_number():
    table = Table(ROWS)
    assert table.series("a") == ([1, 9], [0.5, -1.0])
    assert table.series("b") == ([1, 2, 9], [1.0, 2.0, 4.0])
    assert table.series("c") == ([], [])
    assert [table.has(name) for name in ("a", "b", "c", "d")] == [True, True, False, False]


def test_pairs_are_of_steps_that_have_all():
    assert Table(ROWS).pairs("b", "a") == [(1.0, 1.0, 0.5), (9.0, 4.0, -1.0)]


def test_what_was_measured_and_is_no_number_has_its_steps():
    assert Table(ROWS).nonfinite("a") == [2, 4, 5]
    assert Table(ROWS).nonfinite("c") == [9]
    assert Table(ROWS).names() == ["a", "b", "c"]


def test_a_step_is_a_whole_number():
    assert step_of(ROWS[2]) == 4
    with pytest.raises(TypeError, match="must be a whole number, not '4'"):
        step_of({"step": "4"})


def test_columns_bring_their_own_steps_or_are_counted_from_1():
    assert Table.of({"a": [1.0, 2.0]}).series("a") == ([1, 2], [1.0, 2.0])
    assert Table.of({"a": [1.0, 2.0], "step": [3, 7]}).series("a") == ([3, 7], [1.0, 2.0])

"""The recipe's ``reward:`` in all its forms."""

from pathlib import Path
from typing import Any

import pytest

from klent.config.rewards import RewardSpec, nearest, parse_rewards, short_names
from klent.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "specs"),
    [
        ("exact", [RewardSpec("exact", 1.0, 10.0)]),
        ({"exact": 1, "last_number": -0.5}, [RewardSpec("exact"), RewardSpec("last_number", -0.5)]),
        ({"fn": "gym", "timeout": 3}, [RewardSpec("gym", 1.0, 3.0)]),
        (["gym", {"fn": "exact", "weight": 0}], [RewardSpec("gym"), RewardSpec("exact", 0.0)]),
        ("my.py:fn", [RewardSpec("/recipes/my.py:fn")]),
        ("../mine/my.py:fn", [RewardSpec("/mine/my.py:fn")]),
        ("/abs/my.py:fn", [RewardSpec("/abs/my.py:fn")]),
        ("odd:name/my.py:fn", [RewardSpec("/recipes/odd:name/my.py:fn")]),
        ("package.module:fn", [RewardSpec("package.module:fn")]),
    ],
)
def test_every_form(value: Any, specs: list[RewardSpec]) -> None:
    assert parse_rewards(value, Path("/recipes")) == tuple(specs)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("exakt", r"unknown name 'exakt' \(did you mean 'exact'\?\); built-in are empo, exact, gym"),
        ("my.py", r"names a file and no function; write my\.py:FUNCTION"),
        ("my.py:", r"should read path/to/file\.py:function"),
        (":fn", r"should read path/to/file\.py:function"),
        ("my.py:a b", r"should read"),
        ("folder/my:fn", r"no \.py file and no module; write path/to/file\.py:fn"),
        (3, r"expected a name, a mapping or a list, not 3 \(int\)"),
        (None, r"not None"),
        ([], r"nothing to score with"),
        ({}, r"nothing to score with"),
        ([3], r"expected a name or \{fn, weight, timeout, settings\}"),
        ([{"weight": 1}], r"`fn` must name a function, not None"),
        ([{"fn": "exact", "wieght": 1}], r"unknown key 'wieght' \(did you mean 'weight'\?\)"),
        ({"exact": "1"}, r"reward exact: weight must be a finite number, not '1'"),
        ({"exact": True}, r"weight must be a finite number"),
        ({"exact": float("nan")}, r"weight must be a finite number"),
        ([{"fn": "exact", "timeout": 0}], r"timeout must be more than 0 seconds"),
        ([{"fn": "exact", "timeout": float("inf")}], r"timeout must be a finite number"),
        (["exact", {"fn": "exact", "weight": 2}], r"exact is there twice"),
        ({"exact": 0, "gym": 0.0}, r"every weight is 0"),
    ],
)
def test_what_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rewards(value, Path("/recipes"))


def test_short_names_are_distinct_and_leave_metric_names_alone() -> None:
    specs = parse_rewards(["exact", "a.py:fn", "b.py:fn", "c/b.py:fn", "a.py:mean", "p.q:fn"], Path("/"))
    assert short_names(specs) == ["exact", "fn", "b.fn", "/c/b.py:fn", "a.mean", "p.q.fn"]


def test_nearest() -> None:
    assert nearest("anser", ["answer", "prompt"]) == " (did you mean 'answer'?)"
    assert nearest("zzz", ["answer"]) == ""

"""The recipe's ``reward:`` in all its forms."""

from pathlib import Path

import pytest

from klent.config.rewards import Reward, parse_rewards, short_names
from klent.errors import ConfigError


def reward(fn: str, weight: float = 1.0, timeout: float = 10.0) -> Reward:
    return Reward(fn=fn, weight=weight, timeout=timeout)


@pytest.mark.parametrize(
    ("value", "rewards"),
    [
        ("exact", [reward("exact", 1.0, 10.0)]),
        ({"exact": 1, "last_number": -0.5}, [reward("exact"), reward("last_number", -0.5)]),
        ({"fn": "gym", "timeout": 3}, [reward("gym", 1.0, 3.0)]),
        (["gym", {"fn": "exact", "weight": 0}], [reward("gym"), reward("exact", 0.0)]),
        ({"fn": "gym", "workers": 4, "memory_gb": 2}, [Reward(fn="gym", workers=4, memory_gb=2.0)]),
        ({"exact": 0.5, "timeout": 60}, [reward("exact", 0.5, 60.0)]),
        ({"exact": {}, "timeout": 60, "weight": 0.5}, [reward("exact", 0.5, 60.0)]),
        ({"empo": {"same": "number"}}, [Reward(fn="empo", settings={"same": "number"})]),
        (" exact ", [reward("exact")]),
        ("my.py:fn", [reward("my.py:fn")]),
        ("package.module:fn", [reward("package.module:fn")]),
        ("python:score", [reward("python:score")]),
        ({"model": "runs/rm/final"}, [reward("reward_model:runs/rm/final")]),
        (
            [{"model": "rm", "weight": 2, "process": True, "memory_gb": 4}, "exact"],
            [Reward(fn="reward_model:rm", weight=2.0, process=True, memory_gb=4.0), reward("exact")],
        ),
        ((reward("exact"), reward("gym", 2.0)), [reward("exact"), reward("gym", 2.0)]),
    ],
)
def test_every_form(value: object, rewards: list[Reward]) -> None:
    assert parse_rewards(value) == tuple(rewards)


@pytest.mark.parametrize(
    ("fn", "located"),
    [
        ("my.py:fn", "/recipes/my.py:fn"),
        ("../mine/my.py:fn", "/mine/my.py:fn"),
        ("/abs/my.py:fn", "/abs/my.py:fn"),
        ("odd:name/my.py:fn", "/recipes/odd:name/my.py:fn"),
        ("package.module:fn", "package.module:fn"),
        ("python:fn", "python:fn"),
        ("exact", "exact"),
    ],
)
def test_only_files_are_located(fn: str, located: str) -> None:
    (parsed,) = parse_rewards(fn)
    assert parsed.fn == fn
    assert parsed.located(Path("/recipes")) == reward(located)


def test_only_python_functions_have_a_python_name() -> None:
    assert [
        reward(fn).python_name for fn in ("python:score", "exact", "python.py:score", "pythonic:score")
    ] == [
        "score",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("exakt", r"unknown name 'exakt'; did you mean `exact`\?; shipped are empo, exact, gsm8k, gym"),
        ("my.py", r"names a file and no function; write my\.py:FUNCTION"),
        ("my.py:", r"should read path/to/file\.py:function"),
        (":fn", r"should read path/to/file\.py:function"),
        ("my.py:a b", r"should read"),
        ("folder/my:fn", r"neither a \.py file nor a module; write path/to/file\.py:fn"),
        (3, r"expected a name, a mapping or a list, not 3 \(int\)"),
        (None, r"not None"),
        ([], r"is empty; name at least one reward"),
        ({}, r"is empty; name at least one reward"),
        ([3], r"expected a name or \{fn, weight, timeout, settings, workers, memory_gb, process\}"),
        ([{"weight": 1}], r"`fn` must name a function, not None"),
        (
            [{"fn": "exact", "wieght": 1}],
            r"unknown key 'wieght'; did you mean `weight`\?; keys are fn, weight, timeout, settings",
        ),
        ({"exact": "1"}, r"reward exact: weight must be a finite number, not '1'"),
        ({"exact": True}, r"weight must be a finite number"),
        ({"exact": float("nan")}, r"weight must be a finite number"),
        ([{"fn": "exact", "timeout": 0}], r"timeout must be more than 0 seconds"),
        (
            [{"fn": "exact", "workers": 0}],
            r"reward exact: workers must be a number of processes from 1 on, not 0",
        ),
        ([{"fn": "exact", "workers": True}], r"workers must be a number of processes from 1 on, not True"),
        (
            [{"fn": "empo", "workers": 2}],
            r"workers score each completion alone, and it compares those of a prompt",
        ),
        ([{"fn": "exact", "memory_gb": 0}], r"memory_gb must be at least 0\.1, not 0"),
        ([{"fn": "exact", "memory_gb": "2"}], r"memory_gb must be a finite number, not '2'"),
        (
            {"exact": 1, "gym": 1, "timeout": 60},
            r"timeout belongs to one reward, and there are 2 rewards; write each as \{fn: NAME, timeout: 60\}",
        ),
        ({"timeout": 60}, r"timeout belongs to one reward, and no reward is named"),
        ([{"fn": "exact", "timeout": float("inf")}], r"timeout must be a finite number"),
        (["exact", {"fn": "exact", "weight": 2}], r"exact is listed twice"),
        (["my.py:fn", "./my.py:fn"], r"my\.py:fn is listed twice"),
        ({"exact": 0, "gym": 0.0}, r"every weight is 0"),
    ],
)
def test_what_is_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rewards(value)


def test_short_names_are_distinct_and_leave_metric_names_alone() -> None:
    rewards = parse_rewards(
        ["exact", "/a.py:fn", "/b.py:fn", "/c/b.py:fn", "/a.py:mean", "p.q:fn", "python:std"]
    )
    assert short_names(rewards) == ["exact", "fn", "b.fn", "/c/b.py:fn", "a.mean", "p.q.fn", "python.std"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"model": 3}, "`model` must name a reward model's folder, not 3"),
        ({"model": "rm", "process": 1}, "process must be true or false, not 1"),
        ({"model": "rm", "workers": 2}, "workers is not used by a reward model; remove it"),
        ({"model": "rm", "settings": {"a": 1}}, "settings is not used by a reward model"),
        ({"model": "rm", "memory_gb": 2}, "memory_gb is not used by a reward model; set process: true"),
        ({"model": "rm", "timeout": 2}, "timeout is not used by a reward model; set process: true"),
        (
            {"fn": "exact", "process": True},
            "a function always runs in a process of its own",
        ),
    ],
)
def test_options_that_a_reward_model_or_a_function_does_not_have(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rewards(value)


def test_a_reward_models_folder_is_located_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    assert reward("reward_model:rm").located(tmp_path).model_folder == str(tmp_path / "rm")
    assert reward("reward_model:org/name").located(tmp_path).model_folder == "org/name"
    assert reward("exact").model_folder is None

"""Rewards that are Python functions, in the same isolated processes as those of files."""

import functools
import importlib.util
import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from klent.config.rewards import Reward, parse_rewards
from klent.errors import ConfigError
from klent.tasks import Prompt, Scorer
from klent.tasks.callables import name_functions, name_rewards, pack

LENGTHS = {"scale": 10.0}


def scaled(completions: list[str], **columns: Any) -> list[float]:
    """A function of a module."""
    return [LENGTHS["scale"] * len(text) for text in completions]


class Judge:
    """A reward with a state."""

    def __init__(self, wish: str) -> None:
        self.wish = wish
        self.calls = 0

    def score(self, completions: list[str], **columns: Any) -> list[float]:
        self.calls += 1
        return [float(self.wish in text) + 10 * (self.calls - 1) for text in completions]

    async def __call__(self, completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def scorer(value: object, **options: Any) -> Scorer:
    functions: dict[str, Any] = {}
    rewards = parse_rewards(name_functions(value, functions))
    return Scorer(rewards, functions=functions, **options)


def score(value: object, texts: list[str], **columns: Any) -> Any:
    with scorer(value) as rewards:
        return rewards.score([Prompt(f"p/{i}", "?", dict(columns)) for i in range(len(texts))], texts)


def closure(bonus: float) -> Any:
    def reward(completions, **columns):
        return [len(text) + bonus for text in completions]

    return reward


async def later(completions, **columns):
    import asyncio

    await asyncio.sleep(0.001)
    return [2.0] * len(completions)


def with_torch(completions, **columns):
    import torch

    return torch.tensor([float(len(text)) for text in completions])


def logs(completions, log_metric, **columns):
    log_metric("longest", max(map(len, completions)))
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (scaled, [10.0, 30.0]),
        (closure(0.5), [1.5, 3.5]),
        (lambda completions, **columns: [7.0 for _ in completions], [7.0, 7.0]),
        (later, [2.0, 2.0]),
        (with_torch, [1.0, 3.0]),
        (Judge("y").score, [0.0, 1.0]),
        (Judge("y"), [1.0, 0.0]),
        (
            functools.partial(lambda completions, bonus, **columns: [bonus] * len(completions), bonus=4.0),
            [4.0, 4.0],
        ),
    ],
    ids=["module", "closure", "lambda", "async", "torch", "method", "object", "partial"],
)
def test_every_kind_of_function(function: Any, expected: list[float]) -> None:
    scores = score(function, ["x", "xyz"], answer="x")
    assert scores.problems == {}
    assert scores.reward == expected


def test_the_object_of_a_method_lives_on_in_the_process_and_not_here() -> None:
    judge = Judge("y")
    with scorer(judge.score) as rewards:
        values = [rewards.score([Prompt("p", "?")], ["y"]).reward for _ in range(2)]
    assert values == [[1.0], [11.0]]
    assert judge.calls == 0


def test_forms_weights_settings_and_metrics() -> None:
    def add(completions, *, amount, **columns):
        return [amount] * len(completions)

    value = [logs, {"fn": add, "weight": 0.5, "settings": {"amount": 4.0}}, {"fn": "exact", "weight": 0}]
    with scorer(value) as rewards:
        rewards.check()
        scores = rewards.score([Prompt("p", "?", {"answer": "a"})] * 2, ["a", "bc"])
    assert scores.reward == [3.0, 3.0]
    assert scores.parts == {"logs": [1.0, 1.0], "add": [4.0, 4.0], "exact": [1.0, 0.0]}
    assert scores.metrics == {"longest": 2.0}


def test_names_are_identifiers_and_distinct() -> None:
    functions: dict[str, Any] = {}
    judge = Judge("x")
    first, second = (lambda completions: completions), (lambda completions: completions)
    named = name_functions({first: 1.0, second: 2.0, judge.score: 3.0, judge: 4.0, "exact": 5.0}, functions)
    assert named == {
        "python:lambda_": 1.0,
        "python:lambda__2": 2.0,
        "python:score": 3.0,
        "python:Judge": 4.0,
        "exact": 5.0,
    }
    assert functions["lambda__2"] is second
    assert name_functions(first, functions) == "python:lambda_"  # the same function, the same name
    assert [reward.python_name for reward in parse_rewards(named)] == [*functions, None]


def test_only_rewards_are_named() -> None:
    functions: dict[str, Any] = {}
    values = {"reward": scaled, "eval": {"reward": [scaled, "exact"], "problems": 4}, "loss": len}
    assert name_rewards(values, functions) == {
        "reward": "python:scaled",
        "eval": {"reward": ["python:scaled", "exact"], "problems": 4},
        "loss": len,
    }
    assert name_rewards({"eval.reward": scaled}, functions) == {"eval.reward": "python:scaled"}
    assert list(functions) == ["scaled"]


def raises(completions, **columns):
    if "bad" in completions:
        raise ValueError("not this one")  # the line that is shown
    return [1.0] * len(completions)


@pytest.mark.parametrize("by", ["name", "value"])
def test_what_a_function_raises_costs_its_completion_and_shows_the_line(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "value":
        monkeypatch.setattr("klent.tasks.callables._can_import", lambda module: False)
    scores = score(raises, ["ok", "bad"])
    line = raises.__code__.co_firstlineno + 2
    assert scores.reward[0] == 1.0
    assert math.isnan(scores.reward[1])
    where = f"(test_callables.py, line {line})"
    source = '`raise ValueError("not this one")  # the line that is shown`'
    assert scores.problems[f"raises raised ValueError: not this one {where}: {source}"] == 1


def test_a_function_of_a_notebook_shows_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import linecache

    source = "def cell(completions, **columns):\n    return 1 / 0\n"
    name = "<ipython-input-3-abc>"
    monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(True), name))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), namespace)
    (problem,) = score(namespace["cell"], ["x"]).problems
    assert problem.endswith(
        "ZeroDivisionError: division by zero (<ipython-input-3-abc>, line 2): `return 1 / 0`"
    )


@pytest.mark.parametrize(
    ("habit", "problem"),
    [
        ("hang", "misbehave took longer than its limit of 0.4 s"),
        ("exit", "misbehave its process exited with code 3"),
        ("None", "misbehave returned None"),
    ],
)
def test_a_function_is_as_isolated_as_a_file(habit: str, problem: str) -> None:
    def misbehave(completions, **columns):
        if "hang" in completions:
            time.sleep(60)
        if "exit" in completions:
            os._exit(3)
        return [None if text == "None" else float(len(text)) for text in completions]

    scores = score([{"fn": misbehave, "timeout": 0.4 if habit == "hang" else 10.0}], ["ab", habit])
    assert scores.reward[0] == 2.0
    assert math.isnan(scores.reward[1])
    (alone,) = [text for text in scores.problems if text.startswith(problem) and "whole batch" not in text]
    assert scores.problems[alone] == 1


def test_a_function_that_returns_nothing() -> None:
    scores = score(lambda completions, **columns: None, ["a", "b"])
    assert all(map(math.isnan, scores.reward))
    assert scores.problems["lambda_ returned None instead of a list"] == 2


def test_a_process_that_ended_gets_the_function_again() -> None:
    def once(completions, **columns):
        if completions == ["exit"]:
            os._exit(3)
        return [float(os.getpid())] * len(completions)

    with scorer(once) as rewards:
        prompt = [Prompt("p", "?")]
        first = rewards.score(prompt, ["a"]).reward
        assert math.isnan(rewards.score(prompt, ["exit"]).reward[0])
        second = rewards.score(prompt, ["a"]).reward
    assert first != second
    assert os.getpid() not in (int(first[0]), int(second[0]))


def test_a_function_without_its_process_light() -> None:
    def modules(completions, **columns):
        import sys

        return [float("torch" in sys.modules or "pydantic" in sys.modules)] * len(completions)

    assert score(modules, ["a"]).reward == [0.0]


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    lock = threading.Lock()

    def locked(completions, **columns):
        with lock:
            return [1.0] * len(completions)

    with pytest.raises(
        ConfigError, match=r"reward python:locked: .*cannot be copied there: .*lock.*\. Create"
    ):
        scorer(locked)


def test_a_function_that_is_not_given_is_asked_for() -> None:
    with pytest.raises(
        ConfigError, match=r"python:score: .*klent\.train\(RECIPE, reward=score\), with resume=True"
    ):
        Scorer([Reward(fn="python:score")])


def test_check_finds_a_missing_column_and_setting() -> None:
    class Task:
        name = "t"

        def train(self, position: int) -> Prompt:
            return Prompt("t/0", "?", {"anser": "1"})

        def heldout(self, count: int) -> list[Prompt]:
            return []

    def needs(completions, answer):
        return [1.0] * len(completions)

    message = r"reward python:needs: needs a column 'answer'; did you mean `anser`\?"
    with scorer(needs, task=Task()) as rewards, pytest.raises(ConfigError, match=message):
        rewards.check()
    with (
        scorer([{"fn": needs, "settings": {"x": 1}}]) as rewards,
        pytest.raises(ConfigError, match="no argument 'x'"),
    ):
        rewards.check()


def test_functions_of_an_importable_module_travel_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_mine.py").write_text(
        "CALLS = []\ndef counted(completions, **columns):\n    CALLS.append(1)\n"
        "    return [float(len(CALLS))] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import module_of_mine  # type: ignore[import-not-found]

    assert len(pack(module_of_mine.counted, "counted")) < 100 + len(json.dumps(sys.path)) * 2
    assert score(module_of_mine.counted, ["a"]).reward == [1.0]
    monkeypatch.delitem(sys.modules, "module_of_mine")


def test_functions_of_a_file_loaded_by_path_travel_whole(tmp_path: Path) -> None:
    (tmp_path / "loaded.py").write_text(
        "BASE = 3.0\ndef based(completions, **c):\n    return [BASE] * len(completions)\n"
    )
    spec = importlib.util.spec_from_file_location("loaded_by_path", tmp_path / "loaded.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loaded_by_path"] = module
    try:
        spec.loader.exec_module(module)
        assert score(module.based, ["a"]).reward == [3.0]
    finally:
        del sys.modules["loaded_by_path"]


def test_the_function_is_in_no_named_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    secret = "only in the closure"

    def reward(completions, **columns):
        return [float(len(secret))] * len(completions)

    with scorer(reward) as rewards:
        assert rewards.score([Prompt("p", "?")], ["a"]).reward == [19.0]
        assert list(tmp_path.rglob("*")) == []

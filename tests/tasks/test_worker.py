"""A reward's process: its protocol, and that a file is at home there as a script is in its own."""

import json
import math
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from klent.config import Limits
from klent.control.limits import Guard
from klent.report.glossary import GLOSSARY
from klent.report.terms.evaluation import EVALUATION
from klent.tasks import Prompt, Reward, Scorer, process
from klent.tasks.calls import BEYOND
from klent.tasks.process import CallFailed, Worker, bound_log, read_reply
from klent.tasks.scorer import OWN_FAMILIES, Scores


def scorer(folder: Path, source: str, *functions: str, timeout: float = 20.0, **options: Any) -> Scorer:
    (folder / "my.py").write_text(source)
    rewards = [Reward(fn=f"{folder}/my.py:{name}", timeout=timeout) for name in functions or ("fn",)]
    return Scorer(rewards, **options)


def score(rewards: Scorer, texts: list[str]) -> Scores:
    return rewards.score([Prompt(f"p/{i}", "?") for i in range(len(texts))], texts)


# a reward that forks

FORKS = """
import asyncio, os, sys, time
def sandbox(end):
    if (pid := os.fork()) == 0:
        end()
        return None
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def loose(end):  # the parent does not wait, so the child is there when the next request comes
    if os.fork() == 0:
        time.sleep(0.05)
        end()
        return None
    return 0

def raises(): raise RuntimeError("in the child")
def lengths(completions, codes):
    return None if None in codes else [float(len(text)) + 100 * code for text, code in zip(completions, codes)]

def returns_(completions, **c): return lengths(completions, [sandbox(lambda: None) for _ in completions])
def raises_(completions, **c): return lengths(completions, [sandbox(raises) for _ in completions])
def exits_(completions, **c): return lengths(completions, [sandbox(lambda: sys.exit(3)) for _ in completions])
def exits_well(completions, **c): return lengths(completions, [sandbox(sys.exit) for _ in completions])
def exits_text(completions, **c): return lengths(completions, [sandbox(lambda: sys.exit("no")) for _ in completions])
def loose_returns(completions, **c): return lengths(completions, [loose(lambda: None) for _ in completions])
def loose_raises(completions, **c): return lengths(completions, [loose(raises) for _ in completions])
async def awaits(completions, **c):
    await asyncio.sleep(0.001)
    return lengths(completions, [sandbox(lambda: None) for _ in completions])
def threads(completions, **c):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(4) as pool:
        return lengths(completions, list(pool.map(lambda _: sandbox(lambda: os._exit(0)), completions)))
"""


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("returns_", 0),
        ("raises_", 1),
        ("exits_", 3),
        ("exits_well", 0),
        ("exits_text", 1),
        ("loose_returns", 0),
        ("loose_raises", 0),
        ("awaits", 0),
        ("threads", 0),
    ],
)
def test_a_forked_child_never_answers_for_the_reward(tmp_path: Path, function: str, code: int) -> None:
    with scorer(tmp_path, FORKS, function, log=tmp_path / "log") as rewards:
        for start in range(1, 7):
            texts = ["x" * (start * 10 + i) for i in range(6)]
            scores = score(rewards, texts)
            assert scores.problems == {}
            assert scores.reward == [len(text) + 100.0 * code for text in texts]


def test_a_fork_while_the_file_is_imported_serves_nothing(tmp_path: Path) -> None:
    source = "import os\nCHILD = os.fork() == 0\nif CHILD: raise ValueError\n" + (
        "def fn(completions, **c):\n    return [1.0] * len(completions)\n"
    )
    with scorer(tmp_path, source, log=tmp_path / "log") as rewards:
        rewards.check()
        assert score(rewards, ["a"]).reward == [1.0]


def test_a_child_that_lives_on_does_not_hide_the_end_of_its_parent(tmp_path: Path) -> None:
    source = "import os, time\ndef fn(completions, **c):\n    if os.fork() == 0:\n"
    source += "        time.sleep(60)\n    os._exit(5)\n"
    with scorer(tmp_path, source) as rewards:
        start = time.monotonic()
        assert score(rewards, ["a"]).problems == {"fn its process exited with code 5": 1}
        assert time.monotonic() - start < 10


# replies

VANDAL = """
import json, os
def fn(completions, **c):
    line = LINE
    for number in range(3, 30):
        try:
            os.write(number, line)
        except OSError:
            pass
    return [1.0] * len(completions)
"""


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200_000 + b"\n",
        b'{"value": [9.0], "metrics": {}}\n',
        b'{"id": 7, "value": [9.0], "metrics": {}}\n',
        b'{"id": true, "value": [9.0], "metrics": {}}\n',
        b'{"id": 1, "value": [9.0]}\n',
        b'{"id": 1, "parameters": {"required": [], "named": []}}\n',
        b'{"id": 1, "error": {"kind": "x", "text": 3, "file": "", "line": 1}}\n',
        b'{"id": 1, "error": null}\n',
        b'{"id": 1, "value": [9.0], "metrics": {"m": "much"}}\n',
        b'{"id": 1}\n',
        b"[]\n",
        b"\xff\xfe\n",
        b"9" * 5000 + b"\n",
        b"\n",
    ],
)
def test_a_line_that_is_no_reply_fails_the_call_and_nothing_else(tmp_path: Path, line: bytes) -> None:
    with scorer(tmp_path, VANDAL.replace("LINE", repr(line))) as rewards:
        (problem,) = score(rewards, ["a"]).problems
        assert problem == "fn its process wrote something other than a reply to its pipe"
        assert score(rewards, ["a", "b"]).reward == pytest.approx([math.nan] * 2, nan_ok=True)


def test_an_answer_that_came_too_early_is_not_that_of_the_next_request(tmp_path: Path) -> None:
    early = b'{"id": 2, "value": [9.0], "metrics": {}}\n'
    source = VANDAL.replace("LINE", repr(early)).replace(
        "    line", "    if not hasattr(os, 'x'): return [1.0]\n    line"
    )
    with scorer(tmp_path, source) as rewards:
        assert [score(rewards, ["a"]).reward for _ in range(2)] == [[1.0], [1.0]]


def test_replies_are_read_as_what_they_say() -> None:
    whole = {"id": 4, "value": [1.0], "metrics": {"a": 2.0}}
    assert read_reply(json.dumps(whole).encode(), 4) == whole
    with pytest.raises(ValueError, match="another request"):
        read_reply(json.dumps(whole).encode(), 3)


FLOOD = """
import os, time
def fn(completions, **c):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for number in range(3, 30):
            try:
                os.write(number, b"x" * 1024)
            except OSError:
                pass
        time.sleep(PAUSE)
"""


def test_the_limit_holds_while_data_flows(tmp_path: Path) -> None:
    with scorer(tmp_path, FLOOD.replace("PAUSE", "0.001"), timeout=0.6) as rewards:
        start = time.monotonic()
        (problem,) = score(rewards, ["a"]).problems
        assert problem.startswith("fn took longer than its limit of 0.6 s. ")
        assert "increase its `timeout`" in problem
        assert time.monotonic() - start < 5


def test_an_endless_reply_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_REPLY_BYTES", 1 << 20)
    with scorer(tmp_path, FLOOD.replace("PAUSE", "0")) as rewards:
        assert score(rewards, ["a"]).problems == {"fn its process wrote a reply of more than 1 MiB": 1}


def test_arguments_that_json_cannot_say_fail_the_call() -> None:
    worker = Worker("math:sqrt")
    with pytest.raises(CallFailed, match="cannot be sent its arguments"):
        worker.call({"x": object()}, 5.0)
    worker.close()


def test_a_limit_of_weeks_is_a_limit(tmp_path: Path) -> None:
    source = "def fn(completions, **c):\n    return [1.0] * len(completions)\n"
    with scorer(tmp_path, source, timeout=1e6) as rewards:
        assert score(rewards, ["a"]).reward == [1.0]


# at home

ASYNC = """
import asyncio
GATE = asyncio.Semaphore(2)
LOOPS, client = set(), None

class Client:
    def __init__(self):
        self.loop, self.lock = asyncio.get_running_loop(), asyncio.Lock()
    async def get(self, text):
        assert asyncio.get_running_loop() is self.loop, "Event loop is closed"
        async with self.lock:
            await asyncio.sleep(0.001)
        return float(len(text))

async def one(text):
    async with GATE:
        await asyncio.sleep(0.001)
        return await client.get(text)

async def fn(completions, **c):
    global client
    client = client or Client()
    LOOPS.add(id(asyncio.get_running_loop()))
    if completions == ["exit"]:
        raise SystemExit(2)
    return [(await asyncio.gather(*map(one, completions)))[i] + 100 * len(LOOPS) for i in range(len(completions))]
"""


def test_one_event_loop_for_the_life_of_the_process(tmp_path: Path) -> None:
    with scorer(tmp_path, ASYNC) as rewards:
        for _ in range(3):
            scores = score(rewards, ["a", "bb", "ccc", "dddd", "eeeee"])
            assert scores.problems == {}
            assert scores.reward == [101.0, 102.0, 103.0, 104.0, 105.0]
        assert list(score(rewards, ["exit"]).problems) == ["fn called sys.exit(2)"]
        assert score(rewards, ["a", "bb"]).reward == [101.0, 102.0]


SPAWN = """
import multiprocessing, sys
from dataclasses import dataclass
from concurrent.futures import ProcessPoolExecutor
import beside

@dataclass
class Job:
    text: str

def work(job):
    assert sys.modules[work.__module__].work is work
    return float(len(job.text)) + beside.VALUE

def fn(completions, **c):
    with multiprocessing.get_context("METHOD").Pool(2) as pool:
        return pool.map(work, [Job(text) for text in completions])

def executor(completions, **c):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("METHOD")) as pool:
        return list(pool.map(work, [Job(text) for text in completions]))

if __name__ == "__main__":
    raise SystemExit("this is a script's own part")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.parametrize("stem", ["judge", "json", "my-rewards.v2"])
def test_a_pool_over_functions_of_the_file(tmp_path: Path, method: str, stem: str) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 0.5\n")
    (tmp_path / f"{stem}.py").write_text(SPAWN.replace("METHOD", method))
    functions = ["fn", "executor"] if stem == "judge" else ["fn"]
    rewards = [Reward(fn=f"{tmp_path}/{stem}.py:{name}", timeout=60.0) for name in functions]
    with Scorer(rewards, log=tmp_path / "log") as pools:
        for _ in range(2):
            scores = score(pools, ["a", "bcd"])
            assert scores.problems == {}
            assert scores.reward == [1.5 * len(functions), 3.5 * len(functions)]


# what is said, once and within bounds

QUOTES = """
def fn(completions, **c):
    return [float(text) if text != "list" else [1] for text in completions]
def ways(completions, **c):
    exec("\\n" * int(completions[0]) + "1 / 0")
def exits(completions, **c):
    raise SystemExit(completions[0] * 50)
"""


def test_a_message_that_quotes_the_completion_is_said_once(tmp_path: Path) -> None:
    warned: list[str] = []
    guard = Guard(Limits(), tmp_path, list, warned.append)
    with scorer(tmp_path, QUOTES) as rewards:
        for step in range(5):
            scores = score(rewards, [f"text {step}.{i}" for i in range(4)] + ["1"])
            assert sorted(scores.problems.values()) == [4, 5]
            assert scores.reward[4] == 1.0
            guard.after_update(SimpleNamespace(scores=scores, batch=range(5)))  # type: ignore[arg-type]
    assert len(warned) == 2
    assert "could not convert string to float: 'text 0.0' (my.py, line 3)" in warned[1]


def test_ways_to_fail_are_counted_to_a_bound(tmp_path: Path) -> None:
    seen: set[str] = set()
    with scorer(tmp_path, QUOTES, "ways", "exits") as rewards:
        for step in range(40):
            seen |= score(rewards, [str(step)]).problems.keys()
    assert len([text for text in seen if text.startswith("ways")]) == 17
    assert "ways failed in more ways than the 16 that were reported" in seen
    (exits,) = [text for text in seen if text.startswith("exits")]
    assert len(exits) < 400


@pytest.mark.parametrize("pause", ["", "\n    time.sleep(2)"])
def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: str) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 1 << 20)
    log = tmp_path / "rewards.log"
    source = (
        "import time\ndef fn(completions, **c):\n    for i in range(40_000): print(f'line {i} ' + 'x' * 90)\n"
        f"    print('the last of the call', flush=True){pause}\n    return [1.0] * len(completions)\n"
    )
    with scorer(tmp_path, source, log=log) as rewards:
        sizes = []
        for _ in range(2):
            assert score(rewards, ["a"]).reward == [1.0]
            sizes.append(log.stat().st_size)
            lines = log.read_text().splitlines()
            assert re.fullmatch(
                r"\[klent: this file had grown to \d MiB; its older lines were removed\]", lines[0]
            )
            assert lines[-1] == "the last of the call"
            assert lines[1].startswith("line ")
    assert max(sizes) < 1 << 19


def test_a_log_is_cut_while_others_append(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOG_BYTES", 1000)
    log = tmp_path / "log"
    with open(log, "ab") as other:
        other.write(b"a" * 2000 + b"\nnewest\n")
        other.flush()
        bound_log(log)
        other.write(b"and more\n")
    assert log.read_text().splitlines()[1:] == ["newest", "and more"]
    bound_log(tmp_path / "none")
    bound_log(Path(os.devnull))


# names and values

LOGS = """
NAMES = ["mean", "std", "unscorable", "fn", "reward/mean", "time/step", "policy/entropy", "mine", "my/own", "a\\nb"]
def fn(completions, log_metric, **c):
    for name in NAMES:
        log_metric(name, 0.99)
    return [1.0] * len(completions)
def many(completions, log_metric, **c):
    for text in completions:
        log_metric("of " + text, 1)
    return [1.0] * len(completions)
"""


def test_a_reward_cannot_replace_metrics_of_klent(tmp_path: Path) -> None:
    with scorer(tmp_path, LOGS) as rewards:
        scores = score(rewards, ["a"])
        again = score(rewards, ["a"])
    assert list(scores.metrics) == [
        "fn.mean",
        "fn.std",
        "fn.unscorable",
        "fn.fn",
        "fn.reward.mean",
        "fn.time.step",
        "fn.policy.entropy",
        "mine",
        "my/own",
        "fn.a.b",
    ]
    assert len(scores.notes) == 8
    assert scores.notes[0] == (
        "reward fn: log_metric('mean') is a name that klent uses itself, or that cannot be shown: the metric "
        "is reward/fn.mean. Choose another name"
    )
    assert again.notes == scores.notes
    warned: list[str] = []
    guard = Guard(Limits(), tmp_path, list, warned.append)
    for each in (scores, again):
        guard.after_update(SimpleNamespace(scores=each, batch=range(1)))  # type: ignore[arg-type]
    assert warned == list(scores.notes)


def test_every_family_of_metrics_is_reserved() -> None:
    names = [*GLOSSARY, *EVALUATION]
    assert {name.partition("/")[0] for name in names if "/" in name} <= OWN_FAMILIES


def test_metrics_have_a_bounded_number_of_names(tmp_path: Path) -> None:
    with scorer(tmp_path, LOGS, "many") as rewards:
        first = score(rewards, [str(i) for i in range(100)])
        second = score(rewards, [str(i) for i in range(50, 150)])
    assert len(first.metrics) == 64
    assert list(second.metrics) == [f"of {i}" for i in range(50, 64)]
    (note,) = second.notes
    assert note.startswith("the rewards log metrics of more than 64 names")
    assert first.notes == second.notes


VALUES = """
def fn(completions, **c):
    return [eval(text) for text in completions]
def half(completions, **c):
    return [None if text.startswith("-") else 1.0 for text in completions]
def other(completions, **c):
    return [0.5 if text.startswith("-") else None for text in completions]
def silent(completions, **c):
    return [None for _ in completions]
def fails(completions, **c):
    return [1 / 0 if text == "1" else None for text in completions]
"""


def test_rewards_of_which_float32_makes_no_advantage_are_unscorable(tmp_path: Path) -> None:
    with scorer(tmp_path, VALUES) as rewards:
        scores = score(rewards, ["1", "3.5e38", "-1e300", "10**39", "1e20", "-1e16"])
    assert [math.isnan(value) for value in scores.reward] == [False, True, True, True, True, False]
    assert scores.problems == {
        f"fn returned 3.5e+38, {BEYOND}": 3,
        "fn returned a huge integer": 1,
    }


def test_a_sum_of_which_float32_makes_no_advantage_is_unscorable(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(VALUES)
    with Scorer([Reward(fn=f"{tmp_path}/my.py:fn", weight=10.0)]) as rewards:
        scores = score(rewards, ["1", "1e16"])
    assert scores.reward[0] == 10.0
    assert math.isnan(scores.reward[1])
    assert scores.problems == {f"the weighted sum of the rewards is {BEYOND}": 1}


def test_rewards_that_say_nothing_on_purpose_are_left_out_of_the_sum(tmp_path: Path) -> None:
    texts = ["1", "-2", "2"]
    with scorer(tmp_path, VALUES, "half", "other", "silent") as rewards:
        scores = score(rewards, texts)
    assert scores.problems == {}
    assert scores.reward == [1.0, 0.5, 1.0]
    assert all(map(math.isnan, scores.parts["silent"]))
    with scorer(tmp_path, VALUES, "half", "fails") as rewards:  # one that fails is not one that is silent
        scores = score(rewards, texts)
    assert [math.isnan(value) for value in scores.reward] == [True, True, False]
    assert sorted(n for text, n in scores.problems.items() if "ZeroDivisionError" in text) == [1, 3]
    assert scores.problems["half returned None"] == scores.problems["fails returned None"] == 1


def test_where_none_speaks_nothing_is_scored(tmp_path: Path) -> None:
    with scorer(tmp_path, VALUES, "silent", "half") as rewards:
        scores = score(rewards, ["-1", "1"])
    assert math.isnan(scores.reward[0])
    assert scores.reward[1] == 1.0
    assert scores.problems == {"silent returned None": 1, "half returned None": 1}


def test_weight_zero_is_not_a_voice(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(VALUES)
    rewards = [
        Reward(fn=f"{tmp_path}/my.py:{name}", weight=w) for name, w in (("half", 0.0), ("silent", 1.0))
    ]
    with Scorer(rewards) as both:
        scores = score(both, ["1"])
    assert math.isnan(scores.reward[0])
    assert scores.problems == {"silent returned None": 1}

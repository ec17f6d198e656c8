"""Rewards in processes of their own: whatever one does, the rest of the batch keeps its scores."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from klent.errors import ConfigError, DataError
from klent.streams.episode import Episode
from klent.tasks import Prompt, Reward, Scorer, Task, load_task, parse_rewards
from klent.tasks.process import CallFailed, Worker

FILE = Path(__file__).with_name("rewards_for_tests.py")


def spec(function: str, weight: float = 1.0, timeout: float = 10.0) -> Reward:
    return Reward(fn=f"{FILE}:{function}", weight=weight, timeout=timeout)


def prompts(count: int, **columns: Any) -> list[Prompt]:
    return [Prompt(f"p/{i}", "?", dict(columns)) for i in range(count)]


def score(rewards: Any, completions: list[str], given: list[Prompt] | None = None) -> Any:
    rewards = [rewards] if isinstance(rewards, Reward) else rewards
    with Scorer(rewards) as scorer:
        return scorer.score(given or prompts(len(completions)), completions)


def shown(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# what a reward is given


def test_a_reward_sees_what_trl_would_show_it(tmp_path: Path) -> None:
    where = str(tmp_path / "seen.json")
    messages = [{"role": "user", "content": "hi"}]
    given = [
        Prompt("a", "text", {"answer": 1, "where": where, "completion": "hidden"}),
        Prompt("b", messages, {"answer": [2, "é"], "where": where, "only_b": {"x": None}}),
    ]
    assert score(spec("seen"), ["one", "two\ud800"], given).reward == [1.0, 1.0]
    assert json.loads(Path(where).read_text()) == [
        ["text", messages],
        ["one", [{"role": "assistant", "content": "two\ud800"}]],
        [1, [2, "é"]],
        ["finish", "only_b", "where"],
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("length", [1.0, 3.0]),
        ("no_kwargs", [1.0, 0.0]),
        ("trl_extras", [1.0, 1.0]),
        ("later", [2.0, 2.0]),
        ("against_the_group", [0.0, 1.0]),
        ("like_numpy", [0.0, 1.0]),
        ("numpy_items", [0.5, 1.0]),
        ("an_object", [7.0, 7.0]),
    ],
)
def test_rewards_that_behave(function: str, expected: list[float]) -> None:
    scores = score(spec(function), ["x", "xyz"], prompts(2, answer="x", more=[1]))
    assert scores.reward == expected
    assert scores.parts == {function: expected}
    assert scores.problems == {}


def test_builtins_and_modules() -> None:
    rewards = parse_rewards({"exact": 1.0, "last_number": 1.0, "klent.tasks.verifiers:math_verify": 1.0})
    scores = score(rewards, ["4", "= 4", "5"], prompts(3, answer="4"))
    assert scores.parts == {"exact": [1, 0, 0], "last_number": [1, 1, 0], "math_verify": [1, 1, 0]}
    assert scores.reward == [3.0, 2.0, 0.0]


def test_weights() -> None:
    scores = score([spec("length", 0.5), spec("later", -1.0), spec("no_kwargs", 0.0)], ["ab", "abcd"])
    assert scores.reward == [-1.0, 0.0]
    assert shown(scores.parts["no_kwargs"]) == [
        None,
        None,
    ]  # it has no answers; at weight 0 that costs nothing
    assert any("no_kwargs" in problem for problem in scores.problems)


def test_unscorable_by_one_reward_is_unscorable() -> None:
    scores = score([spec("length"), spec("misbehave", 2.0)], ["ab", "nan", "abc"])
    assert shown(scores.reward) == [6.0, None, 9.0]
    assert scores.parts["length"] == [2.0, 3.0, 3.0]
    assert scores.problems == {"misbehave returned nan": 1}


def test_nothing_to_score() -> None:
    with Scorer([spec("length")]) as scorer:
        assert scorer.score([], []).parts == {"length": []}
        with pytest.raises(ValueError, match="2 prompts, 1 completions, 1 ends"):
            scorer.score(prompts(2), ["x"])


def test_one_process_a_reward_kept_and_light() -> None:
    with Scorer([spec("environment")]) as scorer:
        first = scorer.score(prompts(2), ["a", "b"])
        assert first.problems == {}
        assert first.reward == scorer.score(prompts(2), ["a", "b"]).reward
        assert alive(int(first.reward[0]))
    assert not alive(int(first.reward[0]))


# what a reward does


@pytest.mark.parametrize(
    ("habit", "problem"),
    [
        ("raise", r"misbehave raised ValueError: not like that (rewards_for_tests.py, line 59)"),
        ("exit", "misbehave called sys.exit('bye')"),
        ("os._exit", "misbehave its process exited with code 3"),
        ("kill", "misbehave its process was killed by SIGKILL"),
        ("segfault", "misbehave its process was killed by SIGSEGV"),
        ("vandal", "misbehave its process wrote something other than a reply"),
        ("interrupt", "misbehave raised KeyboardInterrupt (rewards_for_tests.py, line"),
        ("recurse", "misbehave raised RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_call_that_fails_costs_only_its_completion(habit: str, problem: str) -> None:
    scores = score(spec("misbehave"), ["ab", habit, "", "abcd"])
    assert shown(scores.reward) == [2.0, None, 0.0, 4.0]
    counts = sorted(scores.problems.values())
    assert counts == [1, 4]
    once = next(text for text, count in scores.problems.items() if count == 1)
    whole = next(text for text, count in scores.problems.items() if count == 4)
    assert once.startswith(problem.partition(" (rewards")[0])
    assert once in whole
    assert whole.endswith("called with the whole batch: each completion was scored alone")


def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Scorer([spec("length")]) as scorer:
        scores = scorer.score(prompts(2), ["a", "b"])
        with pytest.raises(ConfigError, match="could not be started"):
            scorer.check()
    assert shown(scores.reward) == [None, None]


def test_the_message_names_file_and_line() -> None:
    line = FILE.read_text().splitlines().index('        raise ValueError("not like that")') + 1
    problems = score(spec("misbehave"), ["raise"]).problems
    assert problems == {f"misbehave raised ValueError: not like that (rewards_for_tests.py, line {line})": 1}


@pytest.mark.parametrize("habit", ["hang", "hang in C", "hang stubbornly"])
def test_a_call_that_hangs_costs_its_limit(habit: str) -> None:
    start = time.monotonic()
    scores = score(spec("misbehave", timeout=0.5), ["ab", habit, "abcd"])
    assert shown(scores.reward) == [2.0, None, 4.0]
    batch, alone = sorted(scores.problems, key=len, reverse=True)
    assert alone.startswith("misbehave took longer than its limit of 0.5 s. ")
    assert batch.startswith("misbehave took longer than its limit of 1.5 s, called with the whole batch: ")
    assert all("increase its `timeout`" in text for text in scores.problems)
    assert list(scores.problems.values()) == [3, 1]
    assert time.monotonic() - start < 8


def test_after_four_limits_in_a_row_the_rest_is_given_up() -> None:
    start = time.monotonic()
    with Scorer([spec("misbehave", timeout=0.4)]) as scorer:
        scores = scorer.score(prompts(12), ["hang", "ab", *["hang"] * 9, "ab"])
        assert shown(scores.reward) == [None, 2.0, *[None] * 10]
        (late,) = [
            text
            for text in scores.problems
            if text.startswith("misbehave took longer than its limit of 0.4 s")
        ]
        assert scores.problems[late] == 5
        assert scores.problems["misbehave was given up after 4 limits hit in a row"] == 6
        assert time.monotonic() - start < 15
        assert scorer.score(prompts(1), ["abc"]).reward == [3.0]  # and the next call is new


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("None", "returned None"),
        ("nan", "returned nan"),
        ("inf", "returned inf"),
        ("text", "returned text"),
        ("list", "returned a list"),
        ("huge", "returned a huge integer"),
    ],
)
def test_values_that_are_no_scores(value: str, problem: str) -> None:
    scores = score(spec("misbehave"), ["ab", value, "abcd"])
    assert shown(scores.reward) == [2.0, None, 4.0]
    assert scores.problems == {f"misbehave {problem}": 1}


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("wrong_length", "wrong_length returned 2 values for 1 completion"),
        ("not_a_list", "not_a_list returned a float instead of a list"),
        (
            "a_generator",
            "a_generator raised TypeError: returned generator; return a list with a number for each completion",
        ),
    ],
)
def test_results_that_are_no_list_of_scores(function: str, problem: str) -> None:
    scores = score(spec(function), ["a", "b", "c"])
    assert shown(scores.reward) == [None, None, None]
    assert scores.problems[problem] == 3


def test_a_batch_is_tried_first_and_each_alone_after() -> None:
    assert score(spec("batch_only"), ["a", "b"]).problems == {}
    scores = score(spec("alone_only"), ["a", "b"])
    assert scores.reward == [1.0, 1.0]
    assert list(scores.problems.values()) == [2]
    assert "one at a time, please" in next(iter(scores.problems))


@pytest.mark.parametrize("habit", ["print", "read", "close"])
def test_the_pipe_is_out_of_a_reward_reach(habit: str, tmp_path: Path) -> None:
    log = tmp_path / "rewards.log"
    with Scorer([spec("misbehave")], log=log) as scorer:
        for _ in range(2):
            scores = scorer.score(prompts(2), ["ab", habit])
            assert scores.reward == [2.0, float(len(habit))]
            assert scores.problems == {}
    if habit == "print":
        assert log.read_text().count('{"value": [9.0]}') == 4
        assert "to the error stream" in log.read_text()


def test_a_large_batch(tmp_path: Path) -> None:
    # more than a pipe holds, both ways
    texts = ["x" * 20_000] * 400
    assert score(spec("length"), texts).reward == [20_000.0] * 400
    many = [str(i) for i in range(20_000)]
    assert score(spec("length"), many).reward == [float(len(text)) for text in many]


def test_rewards_run_side_by_side(tmp_path: Path) -> None:
    # each waits for the other's file
    rewards = [spec("meet_first", timeout=30), spec("meet_second", timeout=30)]
    assert score(rewards, ["x"], prompts(1, where=str(tmp_path))).reward == [2.0]


# checks before training


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/no/such/file.py:fn", r"there is no file /no/such/file\.py"),
        (f"{FILE}:lenght", r"has no function 'lenght'; did you mean `length`\?; it has length, seen"),
        (f"{FILE}:NOT_A_FUNCTION", r"'NOT_A_FUNCTION' in .* is of type int, not a function"),
        (
            "no_such_package.rewards:fn",
            r"importing no_such_package\.rewards failed: ModuleNotFoundError: No module",
        ),
    ],
)
def test_check_finds_what_is_not_there(target: str, message: str) -> None:
    with (
        Scorer([Reward(fn="exact"), Reward(fn=target)]) as scorer,
        pytest.raises(ConfigError, match=message),
    ):
        scorer.check()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import json\nimport nonexistent_thing\n",
            r"ModuleNotFoundError: No module named .* \(my\.py, line 2\)",
        ),
        ("def fn(:\n", r"SyntaxError: .* \(my\.py, line 1\)"),
        ("1/0", r"ZeroDivisionError: division by zero \(my\.py, line 1\)"),
        ("import sys\nsys.exit(2)", r"SystemExit: 2 \(my\.py, line 2\)"),
        ("import os\nos._exit(2)", r"its process exited with code 2"),
    ],
)
def test_check_reports_an_import_that_fails(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "my.py").write_text(source)
    with Scorer([Reward(fn=f"{tmp_path}/my.py:fn")]) as scorer, pytest.raises(ConfigError, match=message):
        scorer.check()


def test_a_reward_file_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "helper_of_mine.py").write_text("VALUE = 5.0\n")
    (tmp_path / "my.py").write_text(
        "from dataclasses import dataclass\nimport helper_of_mine\n@dataclass\nclass A:\n    x: int\n"
        "def fn(completions, **kwargs):\n    return [helper_of_mine.VALUE] * len(completions)\n"
    )
    assert score(Reward(fn=f"{tmp_path}/my.py:fn"), ["a"]).reward == [5.0]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    (tmp_path / "p.jsonl").write_text('{"prompt": "2+2=", "anser": "4", "id": 1}\n')
    return load_task({"data": str(tmp_path / "p.jsonl")}, seed=0, heldout=0)


def test_check_compares_columns(task: Task, tmp_path: Path) -> None:
    with Scorer([spec("length"), spec("trl_extras")], task) as scorer:
        scorer.check()
    with (
        Scorer([spec("no_kwargs")], task) as scorer,
        pytest.raises(
            ConfigError, match=r"needs a column 'answer'; did you mean `anser`\?; columns are: anser, id"
        ),
    ):
        scorer.check()


@pytest.mark.parametrize("name", ["prompt", "completion"])
def test_check_refuses_a_column_that_the_call_leaves_out(tmp_path: Path, name: str) -> None:
    row = {"question": "2+2=", "prompt": "p", "completion": "c", "topic": "sums"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    data = {"data": str(tmp_path / "p.jsonl"), "prompt_column": "question"}
    (tmp_path / "my.py").write_text(f"def fn(completions, {name}, **c):\n    return [1.0]\n")
    with (
        Scorer([Reward(fn=f"{tmp_path}/my.py:fn")], load_task(data, seed=0, heldout=0)) as scorer,
        pytest.raises(
            ConfigError, match=f"needs a column '{name}'; it gets {name}s, a list; columns are: .*topic"
        ),
    ):
        scorer.check()


def asked(folder: Path, prompt: Any, **columns: Any) -> Task:
    (folder / "asked.jsonl").write_text(json.dumps({"prompt": prompt, **columns}) + "\n")
    return load_task({"data": str(folder / "asked.jsonl")}, seed=0, heldout=0)


CHAT = [{"role": "user", "content": "2+2="}]


def tried(name: str, task: Task) -> Any:
    with Scorer([spec(name) if name not in ("exact", "last_number") else Reward(fn=name)], task) as scorer:
        (one,) = scorer.check()
    return one._replace(text=re.sub(r"/\S*/", "", one.text))


def test_each_reward_is_called_once_on_the_first_problem(tmp_path: Path) -> None:
    task = asked(tmp_path, "2+2=", answer="4")
    found = tried("last_number", task)
    assert (found.text, found.doubt) == (
        'reward last_number: 1 for "4", the answer of asked.jsonl:1; 0 for "I do not know."',
        False,
    )
    one = tried("length", asked(tmp_path, "2+2="))
    assert one.text == 'reward rewards_for_tests.py:length: 14 for "I do not know." to asked.jsonl:1'
    group = tried("against_the_group", task)
    assert group.text.endswith(': 0 for "4", the answer of asked.jsonl:1; 1 for "I do not know."')


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        (
            "of_messages",
            "2+2=",
            r"raised TypeError: .*It is written for messages, completion\[0\]\['content'\], and",
        ),
        (
            "of_text",
            CHAT,
            "raised AttributeError: .*It is written for text, and this task's prompts are messages",
        ),
        ("one_number", "2+2=", "returned float, not a list with a number for each completion: 1.0"),
        ("words", CHAT, r"returned a list, not a list with a number for each completion: \['good', 'good'\]"),
        (
            "misspelt",
            "2+2=",
            r"raised NameError: .*lenght.*, called with the first problem \(.*asked.jsonl:1\)",
        ),
        ("stateful", "2+2=", "asks for trainer_state, which klent does not have"),
    ],
)
def test_a_reward_that_can_score_nothing_of_the_task_is_refused(
    tmp_path: Path, name: str, prompt: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tried(name, asked(tmp_path, prompt, answer="4"))


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        (
            "of_json",
            "2+2=",
            'Expecting value: line 1 column 1 (char 0) (rewards_for_tests.py, line 75) on "I do not know.": on every '
            "completion tried (asked.jsonl:1). What it fails on is unscorable, and a run in which nothing can be "
            "scored ends before it trains. Correct it, or return None where it cannot judge",
        ),
        (
            "strict",
            "2+2=",
            'raised ValueError: no tag (rewards_for_tests.py, line 79) on "4" and on "I do not know.": on every',
        ),
        (
            "of_numbers",
            "2+2=",
            'on "I do not know." (asked.jsonl:1), and such completions are unscorable. Return a number or None there',
        ),
        ("one_by_one", "2+2=", "called with 2 completions at once (asked.jsonl:1), and not with each alone"),
        ("silent", "2+2=", 'nothing for "4", the answer of asked.jsonl:1; nothing for "I do not know."'),
        ("silently_of_text", CHAT, "but 1 and 0 if they are text. It is written for text"),
    ],
)
def test_what_is_strange_in_the_first_call_is_told(
    tmp_path: Path, name: str, prompt: Any, message: str
) -> None:
    found = tried(name, asked(tmp_path, prompt, answer="4"))
    assert message in found.text
    assert found.doubt


@pytest.mark.parametrize(("name", "prompt"), [("of_text", "2+2="), ("of_messages", CHAT)])
def test_a_reward_of_the_right_form_is_not_doubted(tmp_path: Path, name: str, prompt: Any) -> None:
    assert not tried(name, asked(tmp_path, prompt, answer="4")).doubt


def test_a_first_call_that_hangs_names_the_timeout(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("import time\ndef fn(completions, **c):\n    time.sleep(60)\n")
    reward = Reward(fn=f"{tmp_path}/my.py:fn", timeout=0.2)
    with Scorer([reward], asked(tmp_path, "2+2=")) as scorer:
        (found,) = scorer.check()
    assert "took longer than its limit of 0.2 s on the first problem" in found.text
    assert "raise its `timeout` if it needs the time" in found.text
    assert found.doubt


def test_completion_ids_are_those_that_were_sampled() -> None:
    with Scorer([spec("tokens")]) as scorer:
        known = scorer.score(prompts(2), ["a", "b"], None, [[1, 2], [3]])
        unknown = scorer.score(prompts(2), ["a", "b"])
    assert known.reward == [3.0, 3.0]
    assert shown(unknown.reward) == [None, None]
    assert any(
        "asks for completion_ids, and only texts were given" in problem for problem in unknown.problems
    )


def test_tokens_of_an_episode_are_those_of_its_last_turn_as_its_text_is() -> None:
    (prompt,) = prompts(1)
    one = Episode(prompt, [9], torch.tensor([1, 2]), "a", "stop")
    two = one.followed_by([3, 4], Episode(prompt, [9], torch.tensor([5, 6, 7]), "b", "stop"), 0.0)
    none = Episode(prompt, [9], torch.tensor([], dtype=torch.long), "", "stop")
    with Scorer([spec("tokens")]) as scorer:
        assert scorer.score_episodes([one, two, none]).reward == [3.0, 18.0, 0.0]


@pytest.mark.parametrize("name", ["exact", "last_number", "math_verify"])
def test_check_tries_builtins(task: Task, name: str) -> None:
    with (
        Scorer([Reward(fn=name)], task) as scorer,
        pytest.raises(DataError, match="no column 'answer' or 'solution'"),
    ):
        scorer.check()


def test_gym_reward_without_gym_task(task: Task) -> None:
    with (
        Scorer([Reward(fn="gym")], task) as scorer,
        pytest.raises(ConfigError, match="needs a column 'gym'"),
    ):
        scorer.check()


# the end of processes


def test_closing_ends_what_a_reward_started(tmp_path: Path) -> None:
    where = tmp_path / "pids"
    scorer = Scorer([spec("spawn_and_hang", timeout=1.5)])
    scores = scorer.score(prompts(1, where=str(where)), ["deaf child"])
    assert shown(scores.reward) == [None]
    for pid in map(int, where.read_text().split()):
        assert wait_until(lambda pid=pid: not alive(pid))
    scorer.close()


def test_a_worker_that_does_not_read_its_input() -> None:
    worker = Worker(f"{FILE}:environment")
    (pid,) = map(int, worker.call({"completions": ["x"]}, 10.0))
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(CallFailed, match="took longer than its limit"):
        worker.call({"completions": ["x" * 1_000_000]}, 0.3)
    assert not alive(pid)
    assert worker.call({"completions": ["x"]}, 10.0) != [pid]
    worker.close()


def test_a_worker_that_is_dropped_ends() -> None:
    worker = Worker(f"{FILE}:environment")
    (pid,) = map(int, worker.call({"completions": ["x"]}, 10.0))
    assert alive(pid)
    del worker
    assert wait_until(lambda: not alive(pid))


def test_a_closed_scorer_stays_closed() -> None:
    worker = Worker(f"{FILE}:length")
    worker.retire()
    with pytest.raises(CallFailed, match="was closed"):
        worker.call({"completions": []}, 1.0)


@pytest.mark.parametrize("habit", ["hang", "hang in C"])
def test_workers_never_outlive_a_killed_parent(tmp_path: Path, habit: str) -> None:
    where = tmp_path / "pids"
    code = (
        "from klent.tasks import *\n"
        f"s = Scorer([Reward(fn={str(FILE) + ':spawn_and_hang'!r}, timeout=60)])\n"
        f"s.score([Prompt('p', '?', {{'where': {str(where)!r}}})], [{habit!r}])\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(lambda: where.exists() and len(where.read_text().split()) == 2, 60.0)
    time.sleep(0.2)  # into the hang
    pids = [int(pid) for pid in where.read_text().split()]
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not any(map(alive, pids)))


def test_ctrl_c_in_the_terminal_does_not_reach_workers() -> None:
    worker = Worker(f"{FILE}:environment")
    (pid,) = map(int, worker.call({"completions": ["x"]}, 10.0))
    assert os.getpgid(pid) != os.getpgid(0)
    assert os.getsid(pid) != os.getsid(0)
    worker.close()

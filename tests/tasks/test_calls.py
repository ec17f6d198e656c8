"""What a call may take, who makes it, and that nothing that a reward started outlives it."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from klent.tasks import Prompt, Reward, Scorer
from klent.tasks.calls import Pace
from klent.tasks.process import CallFailed, Worker
from klent.tasks.scorer import Scores

ADVICE = ". If the reward is slow and not stuck, increase its `timeout` (seconds for each completion)"


def write(folder: Path, source: str) -> str:
    (folder / "my.py").write_text(f"HERE = {str(folder)!r}\n{source}")
    return f"{folder}/my.py:fn"


def score(rewards: Scorer, texts: list[str]) -> Scores:
    return rewards.score([Prompt(f"p/{i}", "?") for i in range(len(texts))], texts)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def becomes(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


# the limit of a call

JUDGE = """
import os, time
def fn(completions, log_metric, **c):
    scores = []
    for text in completions:
        with open(f"{HERE}/judged", "a") as file:
            file.write(text + "\\n")
        time.sleep(60 if text == "hang" else 0.1 if "slow" in text else 0)
        if text == "raise": raise ValueError(text)
        if text == "exit": os._exit(3)
        scores.append(float(len(text)))
    log_metric("length", sum(scores) / len(scores))
    return scores
"""


def judged(folder: Path) -> list[str]:
    return (folder / "judged").read_text().split()


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_a_slow_reward_judges_each_completion_once(tmp_path: Path, workers: int | None) -> None:
    texts = [f"slow{'x' * i}" for i in range(6)]
    with Scorer([Reward(fn=write(tmp_path, JUDGE), timeout=0.4, workers=workers)]) as rewards:
        for _ in range(2):
            scores = score(rewards, texts)
            assert scores.problems == {}
            assert scores.reward == [float(len(text)) for text in texts]
            assert scores.metrics == {"length": pytest.approx(6.5)}
    assert sorted(judged(tmp_path)) == sorted(texts * 2)


def test_the_limit_is_for_a_completion_until_the_pace_is_known() -> None:
    pace = Pace(10.0)
    assert pace.limit(16) == 160.0
    pace.learn(1.0, warm=False)  # a first call, which imported something
    assert pace.limit(16) == 64.0
    pace.learn(0.01, warm=True)
    assert (pace.limit(16), pace.limit(1)) == (10.0, 10.0)
    pace.learn(1.5, warm=True)
    assert (pace.limit(16), pace.limit(2)) == (96.0, 12.0)
    pace.learn(0.1, warm=True)
    pace.learn(7.0, warm=False)
    assert pace.limit(16) == 96.0
    pace.learn(9.0, warm=True)
    assert pace.limit(16) == 160.0
    assert Pace(10.0, 0.0).limit(16) == 10.0


def test_a_hang_does_not_cost_a_limit_for_each_completion(tmp_path: Path) -> None:
    texts = [*"abcdefgh" * 5, "hang"]
    with Scorer([Reward(fn=write(tmp_path, JUDGE), timeout=0.5)]) as rewards:
        score(rewards, texts[:-1])
        start = time.monotonic()
        scores = score(rewards, texts)
        assert time.monotonic() - start < 10  # and not 41 limits
    assert scores.reward[:-1] == [1.0] * 40
    late = "fn took longer than its limit of 0.5 s"
    alone = ", called with the whole batch: each completion was scored alone"
    assert scores.problems == {f"{late}{alone}{ADVICE}": 41, f"{late}{ADVICE}": 1}


def test_limits_that_differ_are_one_reason(tmp_path: Path) -> None:
    with Scorer([Reward(fn=write(tmp_path, JUDGE), timeout=0.15)]) as rewards:
        reasons = {text for count in (1, 2) for text in score(rewards, ["hang"] + ["a"] * count).problems}
    assert len(reasons) == 2


# workers

PIDS = """
import os
def fn(completions, **c):
    assert len(completions) == 1
    return [float(os.getpid())]
"""


def test_workers_take_turns_whichever_is_faster(tmp_path: Path) -> None:
    with Scorer([Reward(fn=write(tmp_path, PIDS), workers=3)]) as rewards:
        first, second = (score(rewards, list("abcdefgh")).reward for _ in range(2))
        assert len(set(first)) == 3
        assert first == second == [first[index % 3] for index in range(8)]
        assert score(rewards, ["a"]).reward == first[:1]
    assert not any(alive(int(pid)) for pid in first)


MEET = """
import time
from pathlib import Path
def fn(completions, **c):
    Path(HERE, completions[0]).touch()
    while not all(Path(HERE, name).exists() for name in "abc"):
        time.sleep(0.01)
    return [1.0]
"""


def test_workers_run_side_by_side(tmp_path: Path) -> None:
    with Scorer([Reward(fn=write(tmp_path, MEET), workers=3)]) as rewards:
        assert score(rewards, ["a", "b", "c"]).reward == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("habit", ["hang", "raise", "exit"])
def test_a_worker_that_fails_costs_one_completion(tmp_path: Path, habit: str) -> None:
    texts = ["a", "bb", habit, "dddd", "eeeee"]
    with Scorer([Reward(fn=write(tmp_path, JUDGE), timeout=0.5, workers=2)]) as rewards:
        scores = score(rewards, texts)
    assert [None if math.isnan(value) else value for value in scores.reward] == [1.0, 2.0, None, 4.0, 5.0]
    assert list(scores.problems.values()) == [1]
    assert sorted(judged(tmp_path)) == sorted(texts)
    assert scores.metrics == {"length": 3.0}


# the first call of a process


def test_a_lazy_import_is_given_its_time_and_a_hang_is_not(tmp_path: Path) -> None:
    (tmp_path / "large_library.py").write_text("import time\ntime.sleep(0.8)\n")
    source = "def fn(completions, **c):\n    import large_library, time\n"
    source += "    if completions[0] == 'hang': time.sleep(60)\n    return [1.0] * len(completions)\n"
    with Scorer([Reward(fn=write(tmp_path, source), timeout=0.3)]) as rewards:
        assert score(rewards, ["a"]).problems == {}
        start = time.monotonic()
        assert list(score(rewards, ["hang"]).problems) == [f"fn took longer than its limit of 0.3 s{ADVICE}"]
        assert time.monotonic() - start < 5
        assert score(rewards, ["a"]).reward == [1.0]  # a new process, which imports it again


def test_an_import_that_never_ends_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stuck_library.py").write_text("import time\ntime.sleep(60)\n")
    source = "def fn(completions, **c):\n    import stuck_library\n"
    worker = Worker(write(tmp_path, source))
    worker.parameters()
    monkeypatch.setattr("klent.tasks.process.START_SECONDS", 0.3)
    with pytest.raises(CallFailed, match="took longer"):
        worker.call({"completions": ["a"]}, 0.2)


def test_what_a_first_call_loads_may_be_loaded_again(tmp_path: Path) -> None:
    source = "import time, sys\nloaded = []\ndef fn(completions, **c):\n    if not loaded: time.sleep(0.5)\n"
    source += "    loaded.append(1)\n    if completions == ['hang']: time.sleep(60)\n    return [1.0]\n"
    worker = Worker(write(tmp_path, source))
    assert worker.call({"completions": ["a"]}, 30.0) == [1.0]
    with pytest.raises(CallFailed, match=r"limit of 0\.2 s"):
        worker.call({"completions": ["hang"]}, 0.2)
    assert worker.call({"completions": ["a"]}, 0.2) == [1.0]
    worker.close()


# memory

HOG = """
import subprocess, sys
def fn(completions, **c):
    kept = [bytearray(400_000_000) if text == "hog" else text for text in completions]
    if "child" in completions:
        subprocess.run([sys.executable, "-c", "bytearray(400_000_000)"], check=True, stderr=subprocess.DEVNULL)
    return [float(len(text)) for text in completions]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit is Linux's")
def test_memory_has_a_limit_where_one_is_set(tmp_path: Path) -> None:
    fn = write(tmp_path, HOG)
    with Scorer([Reward(fn=fn, memory_gb=0.2)]) as rewards:
        scores = score(rewards, ["a", "hog", "child"])
    assert [math.isnan(value) for value in scores.reward] == [False, True, True]
    assert "fn raised MemoryError (my.py, line 5); its limit is memory_gb: 0.2" in scores.problems
    with Scorer([Reward(fn=fn)]) as rewards:
        assert score(rewards, ["hog", "child"]).problems == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's choice is Linux's")
def test_a_machine_without_memory_ends_rewards_before_the_training(tmp_path: Path) -> None:
    source = "def fn(completions, **c):\n    return [float(open('/proc/self/oom_score_adj').read())]\n"
    with Scorer([Reward(fn=write(tmp_path, source))]) as rewards:
        assert score(rewards, ["a"]).reward == [1000.0]


# what a reward starts ends with it

ESCAPES = """
import os, signal, subprocess, sys, time
SLEEP = "import signal, time\\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\ntime.sleep(60)"
def fn(completions, **c):
    own_session = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True, env={}).pid
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if (orphan := os.fork()) == 0:
            if os.fork() == 0:
                os.setsid()
            time.sleep(60)
        os.write(write, str(orphan).encode())
        os._exit(0)
    orphan = int(os.read(read, 20))
    with open(f"{HERE}/new", "w") as file:
        file.write(f"{os.getpid()} {own_session} {orphan}")
    os.rename(f"{HERE}/new", f"{HERE}/pids")
    if completions[0] == "hang": time.sleep(60)
    if completions[0] == "exit": os._exit(3)
    if completions[0] == "kill all":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return [1.0]
"""


def started(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "pids").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux")
@pytest.mark.parametrize("habit", ["hang", "exit", "kill all", "return"])
def test_children_with_a_session_of_their_own_end_with_the_reward(tmp_path: Path, habit: str) -> None:
    problems = {
        "hang": {f"fn took longer than its limit of 1 s{ADVICE}": 1},
        "exit": {"fn its process exited with code 3": 1},
        "kill all": {"fn its process was killed by SIGKILL": 1},
        "return": {},
    }
    with Scorer([Reward(fn=write(tmp_path, ESCAPES), timeout=1.0)]) as rewards:
        assert score(rewards, [habit]).problems == problems[habit]
        pids = started(tmp_path)
        tree = [*pids, *(child.pid for pid in pids if alive(pid) for child in psutil.Process(pid).children())]
        assert (habit == "return") == any(map(alive, pids))
    assert not any(map(alive, tree))


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are found on Linux")
def test_nothing_outlives_a_training_that_is_killed(tmp_path: Path) -> None:
    code = f"from klent.tasks.process import Worker\nWorker({write(tmp_path, ESCAPES)!r})"
    code += ".call({'completions': ['hang']}, 60)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    assert becomes((tmp_path / "pids").exists, 60.0)
    pids = started(tmp_path)
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    assert becomes(lambda: not any(map(alive, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is a signal on Linux")
def test_a_reward_whose_supervisor_is_killed_ends_and_starts_anew(tmp_path: Path) -> None:
    worker = Worker(write(tmp_path, PIDS))
    pid = int(worker.call({"completions": ["a"]}, 20.0)[0])  # type: ignore[index]
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert becomes(lambda: not alive(pid))
    with pytest.raises(CallFailed, match="was killed by SIGKILL"):
        worker.call({"completions": ["a"]}, 20.0)
    assert worker.call({"completions": ["a"]}, 20.0) != [pid]
    worker.close()

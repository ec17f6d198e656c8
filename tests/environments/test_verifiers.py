"""Environments of the library verifiers: what is asked, answered and paid, with the library and with a stand-in."""

import importlib
import importlib.util
import sys

import pytest
from environments import verifiers_stand_in

from klent.environments import Step, find_environment
from klent.environments import verifiers as adapter
from klent.environments.verifiers import Verifiers
from klent.errors import ConfigError

TASKSET = """
import verifiers.v1 as vf

__all__ = ["Counting", "CountingEnv"]

class Data(vf.TaskData):
    answer: int

class CountTask(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward
    async def right(self, task, trace) -> float:
        return float(trace.last_reply == str(task.answer))

    @vf.stop
    async def gave_up(self, trace: vf.Trace) -> bool:
        return trace.last_reply == "stop"

class Config(vf.TasksetConfig):
    most: int = 3

class Counting(vf.Taskset[CountTask, Config]):
    def load(self):
        for i in range(self.config.most):
            data = Data(prompt=f"Count to {i + 2}.", system_prompt="Be short.", answer=i + 2)
            yield CountTask(data, self.config.task)

class EnvConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig(max_turns=4)

class CountingEnv(vf.Env[EnvConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            while not segment.terminated and segment.last_reply != str(task.data.answer):
                segment = await talk.turn(f"{segment.last_reply} is not the end")
        talk.trace.record_reward("turns", -0.25 * talk.trace.num_turns, 1.0)
"""
OPENING = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Count to 3."}]
installed = pytest.mark.skipif(
    importlib.util.find_spec("verifiers") is None, reason="verifiers is not installed"
)


@pytest.fixture(params=["stand-in", pytest.param("library", marks=installed)])
def package(request, tmp_path, monkeypatch):
    """The name of an installed taskset."""
    if request.param == "stand-in":
        verifiers_stand_in.install(monkeypatch)
    name = f"counting_{request.param.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(TASKSET)
    monkeypatch.syspath_prepend(tmp_path)
    adapter._world.cache_clear()
    yield name
    adapter._world.cache_clear()
    sys.modules.pop(name, None)


def rewritten(package, tmp_path, old, new):
    """A taskset with another text in it; what fits no place is a mistake of the test."""
    assert old in TASKSET
    (tmp_path / f"{package}.py").write_text(TASKSET.replace(old, new))
    return package


def said(text):
    return [{"role": "user", "content": text}]


def test_turns_are_asked_and_the_whole_is_paid_at_the_end(package):
    game = Verifiers(package)
    assert game.reset({"idx": 1}, 0) == OPENING
    assert game.step("1") == Step(said("1 is not the end"))
    assert game.step("2") == Step(said("2 is not the end"))
    assert game.step(" 3\n") == Step(reward=1 - 0.75, done=True)


def test_a_stop_of_the_task_and_its_most_turns_end_it(package):
    game = Verifiers(package)
    game.reset({"idx": 0}, 0)
    assert game.step("stop") == Step(reward=-0.25, done=True)
    game.reset({"idx": 0}, 0)
    answers = [game.step("no") for _ in range(4)]
    assert [answer.done for answer in answers] == [False, False, False, True]
    assert answers[-1].reward == -1.0


def test_episodes_of_one_process_do_not_meet(package):
    first, second = Verifiers(package), Verifiers(package)
    first.reset({"idx": 0}, 0)
    second.reset({"idx": 2}, 0)
    assert first.step("1") == Step(said("1 is not the end"))
    assert second.step("4") == Step(reward=0.75, done=True)
    first.close()
    assert first.reset({"idx": 1}, 0) == OPENING
    assert first.step("3") == Step(reward=0.75, done=True)
    assert first.world is second.world


def test_without_an_environment_of_its_own_a_task_has_one_turn(package):
    game = Verifiers(package, env="single_agent")
    assert game.reset({"idx": 1}, 0) == OPENING
    assert game.step("3") == Step(reward=1.0, done=True)
    game.reset({"idx": 1}, 0)
    assert game.step("4") == Step(reward=0.0, done=True)


def test_a_start_is_a_task_by_its_place_or_by_the_seed(package):
    game = Verifiers(package, most=5)
    assert game.reset({}, 11) == game.reset({"idx": 1}, 7) == OPENING
    few = Verifiers(package, tasks=2, most=5)
    assert few.reset({}, 11) == OPENING
    with pytest.raises(ConfigError, match=r"has no task 2; `idx` counts its 2 tasks from 0"):
        few.reset({"idx": 2}, 0)
    for wrong in (-1, "1", 1.0):
        with pytest.raises(ConfigError, match="has no task"):
            game.reset({"idx": wrong}, 0)


def test_an_endless_taskset_is_read_as_far_as_it_is_played(package, tmp_path):
    old = "    def load(self):\n        for i in range(self.config.most):"
    new = "    INFINITE = True\n    def load(self):\n        import itertools\n        for i in itertools.count():"
    game = Verifiers(rewritten(package, tmp_path, old, new), most=0)
    assert game.reset({}, 256 + 1) == OPENING
    assert len(game.world.tasks) == 2


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "EnvConfig):\n    player",
            "EnvConfig):\n    judge: vf.AgentConfig = vf.AgentConfig()\n    player",
            "has 2 agents",
        ),
        ("    @vf.reward", "    NEEDS_CONTAINER = True\n    @vf.reward", "needs a container"),
        (
            "class Counting(vf.T",
            "CountTask.toolsets = classmethod(lambda cls, config: ['server'])\nclass Counting(vf.T",
            "over MCP",
        ),
    ],
)
def test_what_cannot_be_played_is_refused_with_its_reason(package, tmp_path, old, new, reason):
    package = rewritten(package, tmp_path, old, new)
    with pytest.raises(ConfigError, match=reason):
        Verifiers(package)


@pytest.mark.parametrize(
    ("old", "new", "error", "reason"),
    [
        (
            "trace: vf.Trace) -> bool:",
            "request: vf.Request) -> bool:",
            ConfigError,
            "reads requests to a model",
        ),
        ("@vf.stop", "@vf.intercept", ConfigError, "has @intercept"),
        ("answer: int", "answer: int\n    image: str = 'box'", ConfigError, "needs a container"),
        (
            "                segment = await talk.turn(",
            "                segment = 1 + await talk.turn(",
            TypeError,
            "int",
        ),
    ],
)
def test_what_a_task_cannot_do_here_ends_its_episode(package, tmp_path, old, new, error, reason):
    game = Verifiers(rewritten(package, tmp_path, old, new))

    def play():
        game.reset({"idx": 0}, 0)
        game.step("1")
        game.step("1")

    with pytest.raises(error, match=reason):
        play()


def test_a_second_conversation_has_no_place_in_an_episode(package, tmp_path):
    old = "        talk.trace.record_reward"
    game = Verifiers(rewritten(package, tmp_path, old, f"        await agents.player.run(task)\n{old}"))
    game.reset({"idx": 0}, 0)
    with pytest.raises(RuntimeError, match="begins a second conversation"):
        game.step("2")


def test_two_conversations_at_once_are_none(package, tmp_path):
    old = "        async with agents.player.interaction(task) as talk:"
    new = "        import asyncio\n        async with asyncio.TaskGroup() as group:\n"
    new += "            for _ in range(2):\n                group.create_task(agents.player.run(task))\n"
    game = Verifiers(rewritten(package, tmp_path, old, new + old))

    def play():
        game.reset({"idx": 0}, 0)
        game.step("2")

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        play()


def test_it_has_a_name_and_says_how_it_is_installed(monkeypatch):
    assert find_environment("verifiers") == "klent.environments.verifiers:Verifiers"
    for name in {"verifiers", *(name for name in sys.modules if name.startswith("verifiers."))}:
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed, whether it is or not
    adapter._world.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'klent\[verifiers\]'"):
        Verifiers("any")

"""The environments that klent brings: tools through the chat template, and worlds of other libraries."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from klent.config import EnvironmentSettings, load_recipe
from klent.environments import NAMED, Step, find_environment
from klent.environments.adapters import Gymnasium, TextArena, TextWorld
from klent.environments.tools import Tools, schema_of
from klent.errors import ConfigError
from klent.tasks.pool import Play
from klent.tasks.starts import EnvironmentTask, start_of

TOOLS = """
def add(a: int, b: int = 0) -> int:
    '''Add two
    numbers.

    More about it.'''
    return a + b

def fail(text: str):
    raise RuntimeError(text)
"""


@pytest.fixture
def tools(tmp_path) -> Tools:
    (tmp_path / "own.py").write_text(TOOLS)
    made = Tools([f"{tmp_path}/own.py:add", f"{tmp_path}/own.py:fail"], longest=30)
    made.reset({"prompt": "what is 2 + 3?"}, 0)
    return made


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_a_tool_is_called_and_told_of(tools):
    assert tools.template["tools"][0]["function"] == {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a"],
        },
    }
    both = tools.step(call("add", '{"a": 2, "b": 3}') + call("add", '{"a": 1}'))
    assert both == Step([{"role": "tool", "content": "5"}, {"role": "tool", "content": "1"}])
    assert tools.step('{"name": "add", "parameters": {"a": 7}}').observation[0]["content"] == "7"
    assert tools.step("It is 5.") == Step(done=True)


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (call("ad", "{}"), "error: there is no tool ad; did you mean `add`?; there are add, fail"),
        (call("add", "{}"), "error: TypeError: add() missin [cut]"),
        (call("add", "3"), "error: the arguments of a call are an object"),
        (call("fail", '{"text": "no"}'), "error: RuntimeError: no"),
        ("<tool_call>add</tool_call>", 'error: a call is {"name": ..., "arguments": {...}}'),
        ('<tool_call>{"name": "add"', 'error: a call is {"name": ..., "arguments": {...}}'),
    ],
)
def test_a_call_that_fails_is_told_to_the_policy(tools, action, told):
    step = tools.step(action)
    assert [message["content"] for message in step.observation] == [told]
    assert not step.done


def test_the_file_of_a_tool_may_be_any_that_python_imports(tmp_path, monkeypatch):
    lines = [
        "from __future__ import annotations",
        "from dataclasses import dataclass",
        "@dataclass",
        "class Pair:",
        "    a: int",
        "def first(a: int) -> int:",
        "    return Pair(a).a",
    ]
    (tmp_path / "own.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert Tools(["own.py:first"]).step(call("first", '{"a": 3}')).observation[0]["content"] == "3"
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    with pytest.raises(ConfigError, match=r"tool leaves.py:f: importing .*leaves.py failed: SystemExit"):
        Tools(["leaves.py:f"])
    (tmp_path / "value.py").write_text("class Add: pass\nf = Add\nn = 3")
    for name, kind in (("f", "type"), ("n", "int")):
        with pytest.raises(
            ConfigError, match=rf"tool value.py:{name}: '{name}' .*is of type {kind}, not a function"
        ):
            Tools([f"value.py:{name}"])


@pytest.mark.parametrize("where", ["task", "eval.play"])
def test_tools_are_beside_the_recipe_wherever_it_is_run_from(tmp_path, monkeypatch, where):
    """Another file of the same name lies in the folder that the process is started in later."""
    recipes, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    for folder in (recipes, elsewhere):
        folder.mkdir()
    (recipes / "own.py").write_text(TOOLS)
    (elsewhere / "own.py").write_text("def add(a: int):\n    return 'of another file'\n")
    (recipes / "rows.jsonl").write_text('{"prompt": "2 + 3?"}\n{"prompt": "2 + 4?"}\n')
    game = {"env": "tools", "config": {"tools": ["own.py:add"]}, "rows": "rows.jsonl"}
    values: dict = {"model": "m", "steps": 1}
    if where == "task":
        values |= {"method": "grpo", "task": game, "reward": "last_number"}
    else:
        (recipes / "log.jsonl").write_text("")
        values |= {"method": "sft", "task": {"trajectories": "log.jsonl"}, "eval": {"play": game}}
    (recipes / "r.yaml").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("recipes/r.yaml")
    section = recipe.task if where == "task" else recipe.eval.play.as_task(recipe.task)
    made = EnvironmentTask(section, heldout=1, trained=where == "task")
    monkeypatch.chdir(elsewhere)  # before the processes start
    (prompt,) = made.heldout(1)
    assert prompt.template["tools"][0]["function"]["description"] == "Add two numbers."
    play = Play(prompt.id, start_of(prompt), 0, [call("add", '{"a": 2, "b": 3}')])
    (answer,) = made.environments.step([play])
    made.environments.close()
    assert answer.observation == [{"role": "tool", "content": "5"}]


def test_tools_are_looked_up_from_the_folder_that_a_task_is_given(tmp_path):
    (tmp_path / "own.py").write_text(TOOLS)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 3?"}\n{"prompt": "2 + 4?"}\n')
    section = EnvironmentSettings(env="tools", config={"tools": ["own.py:add"]}, rows="rows.jsonl")
    made = EnvironmentTask(section, base=tmp_path)
    assert made.train(0).template["tools"]
    made.environments.close()


def test_tools_that_cannot_be_had(tmp_path):
    (tmp_path / "own.py").write_text(TOOLS)
    with pytest.raises(ConfigError, match="has no function 'sub'"):
        Tools([f"{tmp_path}/own.py:sub"])
    with pytest.raises(ConfigError, match=r"has no function 'ad'; did you mean `add`"):
        Tools([f"{tmp_path}/own.py:ad"])
    with pytest.raises(ConfigError, match=r"tool .*there is no file .*missing.py"):
        Tools([f"{tmp_path}/missing.py:add"])
    with pytest.raises(ConfigError, match="a column `prompt`"):
        Tools([]).reset({}, 0)
    assert schema_of(lambda x: x)["function"]["description"] == ""


@pytest.mark.parametrize(("make", "library"), [(Gymnasium, "gymnasium"), (TextArena, "textarena")])
def test_a_library_that_is_not_there_is_named(monkeypatch, make, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"pip install 'klent\[{library}\]'"):
        make("X-v0")
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(ConfigError, match=r"pip install 'klent\[textworld\]'"):
        TextWorld()


def test_gymnasium_with_whole_numbers(monkeypatch):
    """A stand-in with the library's calls: reset(seed, options), step, a discrete space."""
    told = []
    world = SimpleNamespace(
        action_space=SimpleNamespace(n=4, start=0),
        reset=lambda seed, options: (f"seed {seed}", {}),
        step=lambda move: told.append(move) or (move, 0.5, False, move == 3, {}),
        close=lambda: None,
    )
    library = ModuleType("gymnasium")
    library.make = lambda id, **options: world
    monkeypatch.setitem(sys.modules, "gymnasium", library)
    made = Gymnasium("Own-v0")
    assert made.reset({}, 7) == "seed 7"
    assert made.step("I say 9") == Step("Say a whole number from 0 to 3.")
    assert made.step("not 1, but 2") == Step("2", 0.5, False)
    assert made.step("3") == Step("3", 0.5, True)
    assert told == [2, 3]


def test_textarena_says_what_is_new_and_pays_at_the_end(monkeypatch):
    """A stand-in with the library's calls, whose observations repeat the earlier ones."""
    said = ["rules"]
    world = SimpleNamespace(
        reset=lambda num_players, seed: None,
        get_observation=lambda: (0, "\n".join(said)),
        step=lambda action: (said.append(f"not {action}") or len(said) == 3, {}),
        close=lambda: ({0: 0.25}, {}),
    )
    library = ModuleType("textarena")
    library.make = lambda env_id: world
    monkeypatch.setitem(sys.modules, "textarena", library)
    made = TextArena("Own-v0")
    assert made.reset({}, 1) == "rules"
    assert made.step("3") == Step("\nnot 3")
    assert made.step("4") == Step("", 0.25, done=True)


def test_names_are_classes():
    assert all(find_environment(name) == target for name, target in NAMED.items())
    for bad in ("maize", "own.py", "a b:C", "own.py:1"):
        with pytest.raises(ValueError, match=r"path/to/file\.py:Class"):
            find_environment(bad)

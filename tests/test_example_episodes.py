"""examples/games and examples/own_tools: every command of their headers trains, and the tool does what it says."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from tiny import tiny_folder

from klent.config import load_recipe
from klent.environments.tools import Tools
from klent.io.files import read_jsonl
from klent.runs.console import QuietConsole
from klent.runs.train import train

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = [
    "steps=1",
    "prompts_per_step=1",
    "update.minibatches=1",
    "group_size=2",
    "eval=null",
    "checkpoint.every=0",
]


def commands() -> list[list[str]]:
    """What the headers of the two recipes tell to type: a path and overrides."""
    found = []
    for name in ("games", "own_tools"):
        header = (EXAMPLES / name / "recipe.yaml").read_text(encoding="utf-8")
        found += [
            shlex.split(line, comments=True) for line in re.findall(r"^#   klent train (.*)$", header, re.M)
        ]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_a_header_trains(command, tmp_path):
    path, *overrides = command
    folder = tiny_folder(tmp_path / "model")
    recipe = load_recipe(str(EXAMPLES.parent / path), [*overrides, *SMALL, f"model={folder}"])
    run = train(recipe, tmp_path / "run", command="klent train", console=QuietConsole())
    (row,) = read_jsonl(run / "metrics.jsonl")
    assert row["episode/turns"] >= 1
    assert ("value/mean" in row) == (recipe.critic is not None)


def test_the_header_switches_between_all_three_methods():
    methods = {load_recipe(str(EXAMPLES.parent / path), overrides).method for path, *overrides in commands()}
    assert methods == {"grpo", "rloo", "ppo"}


def test_the_calculator_answers_calls_and_refuses_what_is_no_sum():
    spec = importlib.util.spec_from_file_location("calculator", EXAMPLES / "own_tools" / "calculator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tools = module.Calculator()
    assert isinstance(tools, Tools)

    def said(expression):
        call = (
            f'<tool_call>{{"name": "calculate", "arguments": {{"expression": "{expression}"}}}}</tool_call>'
        )
        return tools.step(call).observation[0]["content"]

    assert [said(text) for text in ("7 - 1 - 5", "-3+10", "4")] == ["1", "7", "4"]
    for text in ("2*3", "", "1 +", "__import__"):
        assert said(text) == "error: ValueError: write whole numbers with + and - between them"

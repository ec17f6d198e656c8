"""docs/environments.md: its table is current, its code runs, and its own environment can be played."""

import doctest
import pickle
import re
from importlib import import_module
from pathlib import Path

from typer.testing import CliRunner

from klent.cli import app
from klent.config import EnvironmentSettings
from klent.environments.games.page import main, markdown, with_table
from klent.tasks.pool import Play
from klent.tasks.starts import EnvironmentTask, start_of

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"
TEXT = PAGE.read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(from klent.*?)```", TEXT, flags=re.S)


def test_the_committed_table_is_current():
    assert with_table(TEXT, markdown()) == TEXT, "run: python -m klent.environments.games.page"


def test_writing_the_table_changes_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(TEXT)
    main(page)
    assert page.read_text() == TEXT


def test_the_examples_at_the_prompt():
    examples = doctest.DocTestParser().get_doctest(TEXT, {}, "environments.md", str(PAGE), 0)
    assert len(examples.examples) >= 8
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_an_environment_takes_fifteen_lines_and_can_be_played(tmp_path, monkeypatch):
    code, _ = CODE
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15
    (tmp_path / "higher_lower.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["play", "higher_lower.py:HigherLower", "--config", "limit=7"]
    result = CliRunner().invoke(app, words, input="\n" + "x" * 99 + "\n" + "\n".join("1234567") + "\n")
    assert result.exit_code == 0, result.output
    assert "return 1.000" in result.output
    game = import_module("higher_lower").HigherLower()
    assert game.reset({"number": 5}, 0) == game.reset({"number": 5}, 1)
    game = pickle.loads(pickle.dumps(game))
    assert [game.step(word)[:3] for word in ("4", "5")] == [("higher", 0.0, False), ("lower", 1.0, True)]


def test_the_shop_with_a_tool_and_a_budget_is_played_in_a_process(tmp_path):
    _, code = CODE
    (tmp_path / "shop.py").write_text(code)
    (tmp_path / "rows.jsonl").write_text('{"items": ["fig", "apple"]}\n{"items": ["pear"]}\n')
    section = EnvironmentSettings(env="shop.py:Shop", config={"budget": 2}, rows="rows.jsonl")
    made = EnvironmentTask(section, base=tmp_path)
    prompt = next(p for p in map(made.train, range(9)) if p.columns["items"] == ["fig", "apple"])
    assert prompt.prompt == [
        {"role": "user", "content": "What do fig and apple cost together? You have 2 turns."}
    ]
    assert [tool["function"]["name"] for tool in prompt.template["tools"]] == ["price"]
    calls = [
        f'<tool_call>{{"name": "price", "arguments": {{"item": "{i}"}}}}</tool_call>' for i in ("fig", "plum")
    ]
    turns = []
    for number, actions in enumerate(([calls[0], "They cost 10."], calls, ["It is 9."])):
        play = Play(prompt.id, start_of(prompt), number)
        for action in actions:
            play.actions.append(action)
            (answer,) = made.environments.step([play])
            turns.append((answer.observation, answer.reward, answer.done))
    made.environments.close()
    told = [[{"role": "tool", "content": text}] for text in ("7", "error: KeyError: 'plum'")]
    assert turns == [
        (told[0], -0.05, False),
        ("", 1.0, True),
        (told[0], -0.05, False),
        ("", -0.05, True),  # the budget; what is said at the end nobody reads
        ("", 0.0, True),
    ]

"""docs/environments.md: its table is current, its code runs, and its own environment can be played."""

import doctest
import pickle
import re
from importlib import import_module
from pathlib import Path

from typer.testing import CliRunner

from klent.cli import app
from klent.environments.games.page import main, markdown, with_table

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"
TEXT = PAGE.read_text(encoding="utf-8")


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
    (code,) = re.findall(r"```python\n(from klent.*?)```", TEXT, flags=re.S)
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

"""The code of the tutorials does what they say; their commands were run by hand, and are those that klent has."""

import json
import re
import shlex
import types
from pathlib import Path

import pytest
from typer.main import get_command

from klent import audit
from klent.cli import app

PAGES = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))


def blocks(page: str, language: str) -> list[str]:
    text = next(file for file in PAGES if file.stem == page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def run(code: str) -> types.ModuleType:
    module = types.ModuleType("tutorial")
    exec(compile(code, "tutorial", "exec"), module.__dict__)  # of this repository's own page
    return module


def test_the_data_and_the_rewards_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, rewards = blocks("my-data", "python")
    run(data)
    rows = [json.loads(line) for line in Path("people.jsonl").read_text().splitlines()]
    assert len(rows) == 200
    assert all(row["name"] in row["prompt"][0]["content"] for row in rows)
    assert all(str(row["age"]) in row["prompt"][0]["content"] for row in rows)
    replies = [
        '{"name": "Ann", "age": 7}',
        '{"name": "Ann", "age": 8}',
        '{"name": "Bo", "age": 8}',
        "Ann is 7",
    ]
    asked = {
        "completions": [[{"role": "assistant", "content": reply}] for reply in replies],
        "name": ["Ann"] * 4,
        "age": [7] * 4,
    }
    score = run(rewards)
    assert score.right(**asked) == [1.0, 0.0, 0.0, 0.0]
    assert score.close(**asked) == [1.0, 0.5, 0.0, 0.0]


def test_the_estimators_of_the_third_follow_what_it_says() -> None:
    (code,) = blocks("which-kl", "python")
    module = run(code)
    assert audit.certify(module.k1).on_policy.follows == "zero"
    certificate = audit.certify(module.k3)
    assert certificate.on_policy.follows == "forward_kl_token"
    assert certificate.off_policy.follows == "unknown"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    verbs = get_command(app).commands
    lines = "\n".join(blocks(page.stem, "bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("klent ")]
    assert len(commands) >= 3
    for _, verb, *words in commands:
        command = verbs[verb]
        if hasattr(command, "commands"):
            command = command.commands[words[0]]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_output_is_there(page: Path) -> None:
    assert "@@" not in page.read_text(encoding="utf-8")

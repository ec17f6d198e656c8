"""docs/bring-your-own.md and its example do what they say."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from klent.config import load_recipe
from klent.tasks import Scorer, load_task, parse_rewards

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "bring-your-own.md").read_text()
COMMANDS = re.findall(r"^klent train (.*)$", PAGE, re.MULTILINE)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_recipe(command: str) -> None:
    recipe, *overrides = [word for word in shlex.split(command) if not word.startswith("--")]
    load_recipe(recipe, overrides)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


def test_the_example_scores_as_its_docstrings_say() -> None:
    recipe = load_recipe("examples/own_task/recipe.yaml")
    assert recipe.reward is not None
    assert recipe.eval is not None
    task = load_task(recipe.task, seed=recipe.seed, heldout=recipe.eval.problems)
    kept_out = task.heldout(recipe.eval.problems)
    trained = [task.train(position) for position in range(20)]
    assert len(kept_out) == 4
    assert len({prompt.id for prompt in [*kept_out, *trained]}) == 24
    prompt = trained[0]
    right = prompt.columns["answer"]
    wrong = next(n for n in re.findall(r"\d+", prompt.prompt[0]["content"]) if n != right)  # type: ignore[index]
    completions = [right, f"It is {right}", wrong, "both"]
    with Scorer(recipe.reward, task) as scorer:
        scorer.check()
        scores = scorer.score([prompt] * 4, completions)
    assert scores.problems == {}
    assert scores.parts["correct"] == [1.0, 1.0, 0.0, 0.0]
    assert scores.parts["brief"] == pytest.approx([1.0, 0.8, 1.0, 1.0])
    assert scores.reward == pytest.approx([1.2, 1.16, 0.2, 0.2])


def test_every_answer_of_the_example_is_right() -> None:
    task = load_task({"data": "examples/own_task/prompts.jsonl"}, seed=0, heldout=0)
    for position in range(24):
        prompt: Any = task.train(position)
        numbers = map(int, re.findall(r"\d+", prompt.prompt[0]["content"]))
        assert int(prompt.columns["answer"]) == max(numbers)


def test_the_forms_of_reward_in_the_page() -> None:
    listed, mapped = [
        [{"fn": "reward.py:correct"}, {"fn": "reward.py:brief", "weight": 0.2, "timeout": 2}],
        {"exact": 1, "reward.py:brief": 0.2},
    ]
    assert [reward.weight for reward in parse_rewards(listed)] == [1.0, 0.2]
    assert [reward.weight for reward in parse_rewards(mapped)] == [1.0, 0.2]
    assert '{"exact": 1, "reward.py:brief": 0.2}' in PAGE


def test_the_errors_in_the_page_are_real(tmp_path: Path) -> None:
    rows = ['{"prompt": "a", "answer": "1"}'] * 11 + ['{"prompt": "aaaaa", "answer": 1 2}']
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"^prompts\.jsonl:12") as malformed:
        load_task({"data": "prompts.jsonl"}, seed=0, heldout=0, base=tmp_path)
    rows = ['{"prompt": "a"}'] * 2 + ['{"promt": "a", "answer": "1"}']
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"^prompts\.jsonl:3") as missing:
        load_task({"data": "prompts.jsonl"}, seed=0, heldout=0, base=tmp_path)
    assert str(missing.value) in PAGE
    assert re.sub(r"\d+$", "31", str(malformed.value)) in PAGE

"""What a run asks: prompts are tried before it starts, and read the same on the day that it goes on."""

import datetime
import json
from pathlib import Path

import pytest
from tiny import CHAT_TEMPLATE, tiny_folder

from klent.config import load_recipe, make_recipe
from klent.errors import DataError
from klent.io.files import read_jsonl
from klent.runs import train as module
from klent.runs.console import QuietConsole

REWARD = """
def digits(prompts, completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ch.isdigit() for ch in t) / max(len(t), 1) for t in texts]
"""
BASE = {
    "name": "tiny",
    "model": "model",
    "method": "grpo",
    "task": {"data": "prompts.jsonl"},
    "reward": "reward.py:digits",
    "prompts_per_step": 4,
    "group_size": 6,
    "rollout": {"max_tokens": 8},
    "optimizer": {"lr": 0.01},
    "eval": None,
}
REPLAY = {
    "method": "sft",
    "rollout": {"engine": "dataset", "max_tokens": 60},
    "group_size": 1,
    "reward": None,
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch):
    """A folder with a tiny model, a file of prompts and a reward."""
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    write(tmp_path / "prompts.jsonl", [f"say {i}" for i in range(40)])
    return tmp_path


def run(world: Path, *, resume: bool = False, name: str = "run", **changes):
    recipe = make_recipe(BASE | changes)
    return module.train(recipe, world / name, command="klent", resume=resume, console=QuietConsole())


def numbers(folder: Path) -> list[tuple[object, ...]]:
    names = ("step", "reward/mean", "policy/entropy", "grad/norm")
    return [tuple(row[name] for name in names) for row in read_jsonl(folder / "metrics.jsonl")]


def write(path: Path, prompts: list[str]) -> None:
    rows = [{"prompt": p, "number": 1, "completion": "1"} for p in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_a_prompt_longer_than_the_context_is_refused_before_the_first_step_or_dropped(world, method):
    write(world / "prompts.jsonl", [*(f"say {i}" for i in range(20)), "x" * 520])
    changes = {"steps": 1, **(REPLAY if method == "sft" else {})}
    with pytest.raises(DataError, match=r"prompts\.jsonl:21 .*task\.too_long=drop"):
        run(world, **changes)
    assert not (world / "run" / "config.yaml").exists()
    task = {"data": "prompts.jsonl", "too_long": "drop"}
    folder = run(world, name="dropped", task=task, **changes)
    assert len(list(read_jsonl(folder / "metrics.jsonl"))) == 1


def test_a_template_with_a_date_reads_the_same_when_a_run_goes_on_another_day(world, monkeypatch):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + CHAT_TEMPLATE
    tokenizer.save_pretrained(world / "model")
    days = [datetime.datetime(2025, 2, 3)]

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return days[-1]

    monkeypatch.setattr(module, "datetime", Clock)
    task = {"data": "prompts.jsonl", "system": "Be brief."}
    run(world, task=task, steps=2)
    assert load_recipe(world / "run" / "config.yaml").task.clock == datetime.date(2025, 2, 3)
    days.append(datetime.datetime(2025, 11, 28))
    folder = run(world, task=task, steps=4, resume=True)
    days.pop()
    whole = run(world, task=task, steps=4, name="whole")
    assert numbers(folder) == numbers(whole)


def test_the_day_is_recorded_only_where_a_template_reads_it(world):
    folder = run(world, steps=1)
    assert load_recipe(folder / "config.yaml").task.clock is None


def test_all_turns_of_a_conversation_are_trained(world):
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "a"}]
    rows = [{"prompt": chat[:1], "completion": [chat[1], *chat], "number": i} for i in range(8)]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run(world, steps=2, **REPLAY)
    assert list(read_jsonl(folder / "samples.jsonl"))

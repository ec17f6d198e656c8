"""The small model of examples/: its texts are right about arithmetic; a tiny one trains, saves and loads."""

import importlib.util
import json
import random
import subprocess
import sys
import types
from pathlib import Path

import pytest

from klent.config import load_recipe
from klent.models.chat import render_prompt
from klent.models.load import load_policy

FOLDER = Path(__file__).parents[3] / "examples" / "small_model"


@pytest.fixture(scope="module")
def texts() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("small_model_texts", FOLDER / "texts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answers_are_those_of_python(texts):
    rng = random.Random(0)
    for _ in range(300):
        problem = texts.draw_problem(rng)
        by_rule = eval(texts.show(problem).removesuffix("=?"))
        assert texts.answer(problem) == by_rule
        assert 0 <= by_rule <= 99


def test_without_slips_sloppy_writers_are_right_and_careful_ones_know_no_precedence(texts):
    rng = random.Random(1)
    for _ in range(300):
        problem = texts.draw_problem(rng)
        right = str(texts.answer(problem))
        ends = {n: texts.solve(problem, n, rng, 0.0).rsplit("#", 1)[1] for n in texts.NOTATIONS}
        assert (ends["d"], ends["e"]) == (right, right)
        assert ends["a"] == ends["b"] == ends["c"] == str(texts.partial_results(*problem)[-1])
        if "*" not in problem[1]:
            assert ends["a"] == right


def test_slips_are_as_frequent_as_said(texts):
    rng = random.Random(2)
    problem = ([5, 4, 3], ["+", "+"])
    whole = [texts.solve(problem, "a", rng, 0.3).startswith("a 5+4=9,9+3=12 ") for _ in range(2000)]
    assert sum(whole) / 2000 == pytest.approx(0.7**2, abs=0.04)


def test_every_character_is_in_the_vocabulary(texts):
    rng = random.Random(3)
    seen = {character for _ in range(500) for part in texts.draw_text(rng) for character in part}
    assert seen <= set(texts.CHARACTERS)


def make(folder: Path) -> None:
    options = ["--steps", "3", "--rows", "4", "--hidden", "32", "--layers", "1", "--problems", "20"]
    command = [sys.executable, str(FOLDER / "pretrain.py"), "--out", str(folder), *options]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_a_tiny_one_trains_saves_loads_and_is_repeatable(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    loaded = load_policy(str(tmp_path / "one"))
    assert loaded.tokenizer.decode(render_prompt(loaded.tokenizer, "4+9-2=?")) == "4+9-2=?"
    assert loaded.stop_ids == (loaded.tokenizer.eos_token_id,)
    rows = {
        name: [json.loads(line) for line in (tmp_path / "one" / "problems" / f"{name}.jsonl").open()]
        for name in ("train", "heldout")
    }
    assert (len(rows["train"]), len(rows["heldout"])) == (20, 200)
    assert not {row["prompt"] for row in rows["train"]} & {row["prompt"] for row in rows["heldout"]}


def test_the_recipe_loads():
    recipe = load_recipe(FOLDER / "recipe.yaml")
    assert recipe.update.minibatches > 1  # with one update a step no clip and no KL penalty has any effect
    assert recipe.eval is not None
    assert recipe.eval.samples == 8

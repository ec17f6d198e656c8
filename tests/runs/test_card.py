"""The card of an exported model: what was trained on what, as far as the exported step, and nothing that acts."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from report.fake_run import write_run

from klent.models.licence import licence_file, licence_of
from klent.runs.card import model_card


def change(run: Path, **values: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | values))


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_it_says_what_was_trained_on_what_and_how_well(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 6)
    card = model_card(run, 6, licence="apache-2.0")
    assert front(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "tags": ["klent"],
    }
    evals = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    before, after = evals[0]["accuracy"], evals[-1]["accuracy"]
    (row,) = [line for line in card.splitlines() if line.startswith("| accuracy")]
    assert f"{before:.3f}" in row.split("|")[2]
    assert f"{after:.3f}" in row.split("|")[3]
    for said in ("`smollm2-135m`", "`chain_sum`", "by grpo", "6 steps of 8 prompts × 8 completions", "`gym`"):
        assert said in card
    assert json.loads((run / "run.json").read_text())["command"] in card
    assert (run / "config.yaml").read_text().strip() in card


def test_what_came_after_the_exported_step_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 6)
    early = model_card(run, 2, licence=None)
    assert "2 steps of" in early
    assert "license" not in front(early)
    assert "not known here" in early
    steps = {json.loads(line)["step"] for line in (run / "eval.jsonl").read_text().splitlines()}
    assert max(steps) == 6
    assert "before: step 0, and no step after it" in early
    assert "| not measured |" in early


def test_a_base_model_and_a_dataset_of_a_hub_are_linked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 2)
    change(
        run,
        model="org/base-1b",
        task={"data": "org/set"},
        lora={"rank": 8},
        reward={"exact": 1, "a.py:f": 0.5},
    )
    card = model_card(run, 2, licence="mit")
    assert (front(card)["base_model"], front(card)["datasets"]) == ("org/base-1b", ["org/set"])
    assert "a LoRA adapter of rank 8, merged into the weights" in card
    assert "Reward: `a.py:f`, `exact`." in card


def test_nothing_that_a_recipe_says_acts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 2)
    change(run, name="x\n---\nlicense: mit", model="a`b\n# c", method="<img src=x>", note="```\n# out\n````")
    card = model_card(run, 2, licence=None)
    assert "license" not in front(card)
    assert [line for line in card.splitlines() if line.startswith("# ")][:1] == ["# x --- license: mit"]
    before, _, recipe = card.partition("The recipe as it was resolved:")
    assert "<img" not in before.replace("\\<img", "")
    fence = recipe.strip().splitlines()[0].removesuffix("yaml")
    assert len(fence) > 4
    assert recipe.count(fence) == 2


@pytest.mark.parametrize(
    ("file", "text", "licence"),
    [
        ("README.md", "---\nlanguage: en\nlicense: llama3.2\n---\n# A", "llama3.2"),
        ("README.md", "# license: mit\n", None),
        ("LICENSE", "   Apache License\n Version 2.0", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright", "mit"),
        ("LICENSE", "All rights reserved", None),
        ("other.md", "license: mit", None),
    ],
)
def test_the_licence_of_a_folder(tmp_path: Path, file: str, text: str, licence: str | None) -> None:
    (tmp_path / file).write_text(text)
    assert licence_of(str(tmp_path), tmp_path) == licence
    assert (licence_file(tmp_path) is not None) == file.startswith("LICENSE")


def test_an_alias_and_a_card_of_klent_name_a_licence(tmp_path: Path) -> None:
    assert licence_of("smollm2-135m", tmp_path) == "apache-2.0"
    run = write_run(tmp_path / "r", 2)
    (tmp_path / "README.md").write_text(model_card(run, 2, licence="gemma"))
    assert licence_of("x", tmp_path) == "gemma"  # so that a model made of this one has it too


def test_an_alias_is_described_behind_its_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 2)
    config = run / "config.yaml"
    config.write_text("model: smollm2-135m\n")
    assert "`smollm2-135m` (SmolLM2-135M-Instruct by Hugging Face" in model_card(run, 2, licence=None)

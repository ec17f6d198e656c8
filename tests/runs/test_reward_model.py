"""Pairs to a reward model to a policy: trained, measured, centred, read by transformers, used as a reward."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from klent.config import Recipe, make_recipe
from klent.errors import ModelError
from klent.measure.calibration import calibration, calibration_error, reliability
from klent.models.load import load_policy
from klent.policies.causal_lm.reward_model import RewardModel
from klent.rollout.dataset_engine import DatasetEngine
from klent.runs.console import QuietConsole
from klent.runs.evaluate import evaluate_model
from klent.runs.export import export_checkpoint
from klent.runs.plan import describe_plan
from klent.runs.train import train
from klent.streams.batch import make_batch
from klent.streams.prompt import Prompt
from klent.tasks import load_task


def pairs(count: int) -> list[dict[str, object]]:
    """An answer with an exclamation mark is better than one without."""
    draw = random.Random(0)

    def word() -> str:
        return "".join(draw.choice("abcdefgh") for _ in range(draw.choice([3, 4, 5])))

    return [{"prompt": f"say {i}", "chosen": word() + "!" + word(), "rejected": word()} for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pairs, and a run that trained a reward model on them."""
    path = tmp_path_factory.mktemp("rlhf")
    tiny_folder(path / "model")
    (path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(160)))
    train(recipe_of(path), path / "rm", command="test", console=QuietConsole())
    return path


def recipe_of(path: Path, **other: object) -> Recipe:
    values = {
        "name": "rm",
        "model": str(path / "model"),
        "method": "reward_model",
        "task": {"pairs": str(path / "pairs.jsonl"), "heldout": 40},
        "steps": 24,
        "prompts_per_step": 16,
        "rollout": {"max_tokens": 16},
        "optimizer": {"lr": 3e-3},
        "eval": {"problems": 40},
    }
    return make_recipe({**values, **other})


@pytest.mark.parametrize(
    ("policy", "lr", "rate"), [({}, 3e-5, 1e-3), ({}, 3e-3, 3e-3), ({"head_lr": 5e-4}, 3e-5, 5e-4)]
)
def test_the_head_learns_at_a_rate_of_its_own(
    tmp_path: Path, policy: dict[str, float], lr: float, rate: float
) -> None:
    """The first step of Adam moves every weight by its rate, where the gradient is much larger than eps."""
    tiny_folder(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(60)))
    one = {
        "steps": 1,
        "eval": None,
        "optimizer": {"lr": lr},
        "task": {"pairs": str(tmp_path / "pairs.jsonl")},
    }
    recipe = recipe_of(tmp_path, **one, policy={"kind": "reward_model", **policy})
    rates = f"learning rate {lr:g}" + (f", of score {rate:g}" if rate != lr else "")
    assert any(line.endswith(rates) for line in describe_plan(recipe))
    train(recipe, tmp_path / "rm", command="test", console=QuietConsole())
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm" / "final").score.weight
    assert head.abs().median().item() == pytest.approx(rate, rel=1e-3)


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_learns_which_answers_are_better(folder: Path) -> None:
    before, after = rows(folder / "rm" / "eval.jsonl")
    assert before["preference/accuracy"] == 0.5
    assert before["calibration/log_loss"] == pytest.approx(math.log(2))
    assert after["preference/accuracy"] >= 0.95
    assert after["calibration/log_loss"] < 0.3
    assert sum(b["pairs"] for b in after["calibration/bins"]) == 40


def test_what_a_model_without_actions_does_not_have_is_absent(folder: Path) -> None:
    for row in rows(folder / "rm" / "metrics.jsonl"):
        assert not {name for name in row if name.startswith(("policy/", "kl/", "forks/"))}
        assert not any(isinstance(value, float) and math.isnan(value) for value in row.values())
    assert rows(folder / "rm" / "metrics.jsonl")[-1]["preference/accuracy"] >= 0.95
    assert rows(folder / "rm" / "samples.jsonl")[0]["coefficient"][0] is None
    assert "Calibration error" in (folder / "rm" / "report.html").read_text()


def test_the_folder_is_read_by_transformers_and_centred_on_the_held_out_pairs(folder: Path) -> None:
    final = folder / "rm" / "final"
    loaded = load_policy(str(final), scores=True)
    engine = DatasetEngine(loaded, max_tokens=16, columns=("chosen", "rejected"))
    prompts = [Prompt(str(i), str(row["prompt"]), row) for i, row in enumerate(pairs(160)[:4])]
    batch = make_batch(engine.generate(prompts, group_size=2, seed=0), None, group_size=2)
    ours = RewardModel(loaded.model).scores(batch)

    tokenizer, model = (
        AutoTokenizer.from_pretrained(final),
        AutoModelForSequenceClassification.from_pretrained(final),
    )
    texts = [
        str(p.prompt) + str(p.columns[side]) + tokenizer.eos_token for p in prompts for side in engine.columns
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        theirs = model(**inputs).logits[:, 0]
    offset = model.config.klent_score_offset
    assert offset
    assert torch.allclose(ours, theirs + offset, atol=1e-5)

    task = load_task(recipe_of(folder).task, seed=0, heldout=40, needed=("chosen", "rejected"))
    held_out = make_batch(engine.generate(task.heldout(40), group_size=2, seed=0), None, group_size=2)
    assert float(RewardModel(loaded.model).scores(held_out).mean()) == pytest.approx(0.0, abs=1e-5)


def test_it_is_centred_on_the_answers_that_a_recipe_names(folder: Path) -> None:
    answers = folder / "answers.jsonl"
    lines = [{"prompt": f"say {i}", "completion": "bad!"} for i in range(3)]
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines))
    policy = {"kind": "reward_model", "centre_on": str(answers)}
    recipe = recipe_of(folder, policy=policy, steps=1, name="centred", eval=None)
    train(recipe, folder / "centred", command="test", console=QuietConsole())
    loaded = load_policy(str(folder / "centred" / "final"), scores=True)
    engine = DatasetEngine(loaded, max_tokens=16)
    prompts = [Prompt(str(i), str(line["prompt"]), dict(line)) for i, line in enumerate(lines)]
    scores = RewardModel(loaded.model).scores(
        make_batch(engine.generate(prompts, group_size=1, seed=0), None, group_size=1)
    )
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)


def test_its_folder_is_evaluated_on_the_same_pairs(folder: Path) -> None:
    recipe = recipe_of(folder)
    row = evaluate_model(str(folder / "rm" / "final"), recipe)
    after = rows(folder / "rm" / "eval.jsonl")[-1]
    same = ("preference/accuracy", "calibration/error", "preference/margin")
    assert [row[key] for key in same] == pytest.approx([after[key] for key in same], abs=1e-5)
    with pytest.raises(ModelError, match="is a language model, not a reward model"):
        evaluate_model(str(folder / "model"), recipe)


def test_a_checkpoint_of_it_is_exported_as_a_reward_model(folder: Path) -> None:
    exported = export_checkpoint(folder / "rm", folder / "exported", on_damage=print)
    one, other = (load_policy(str(path), scores=True).model for path in (exported, folder / "rm" / "final"))
    assert torch.equal(one.score.weight, other.score.weight)


def test_a_policy_is_trained_on_its_scores(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(8))
    )
    values = {
        "name": "grpo",
        "model": str(folder / "model"),
        "method": "grpo",
        "task": {"data": str(folder / "prompts.jsonl")},
        "reward": {"model": str(folder / "rm" / "final")},
        "steps": 2,
        "prompts_per_step": 2,
        "group_size": 4,
        "rollout": {"max_tokens": 6},
        "optimizer": {"lr": 1e-3},
        "eval": {"problems": 1, "samples": 2},
    }
    console = QuietConsole()
    train(make_recipe(values), folder / "grpo", command="test", console=console)
    row = rows(folder / "grpo" / "metrics.jsonl")[0]
    assert row["reward/std"] > 0
    assert row["reward/unscorable"] == 0.0
    assert not any("tokenizer" in warning for warning in console.warnings)

    sample = rows(folder / "grpo" / "samples.jsonl")[0]
    loaded = load_policy(str(folder / "rm" / "final"), scores=True)
    ids = loaded.tokenizer.convert_tokens_to_ids(sample["tokens"])
    prompt = loaded.tokenizer(sample["prompt"], add_special_tokens=False).input_ids
    with torch.no_grad():
        alone = loaded.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, 0]
    assert sample["reward"] == pytest.approx(float(alone) + loaded.model.config.klent_score_offset, abs=1e-4)


def test_bins_are_of_equal_numbers_and_the_error_is_what_they_are_off() -> None:
    differences = [0.1 * i * (-1 if i % 4 == 0 else 1) for i in range(1, 101)]
    bins = reliability(differences)
    assert [b.pairs for b in bins] == [10] * 10
    assert all(b.low <= b.high for b in bins)
    by_hand = sum(abs(b.predicted - b.observed) for b in bins) / 10
    assert calibration_error(bins) == pytest.approx(by_hand)


def test_a_model_that_is_as_sure_as_it_is_right_has_no_error() -> None:
    """Three right of four at a distance of log 3, where sigma is 3/4."""
    differences = [math.log(3)] * 15 + [-math.log(3)] * 5
    found = calibration(differences)
    assert len(found["calibration/bins"]) == 4
    assert calibration_error(reliability(differences[:3] + differences[-1:])) == pytest.approx(0.0)
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["calibration/log_loss"] == pytest.approx(expected)


def test_the_plan_of_a_reward_model_is_what_it_does(folder: Path) -> None:
    plan = "\n".join(describe_plan(recipe_of(folder)))
    assert "loss: bradley_terry(margin=0.0) reads preferred, score" in plan
    assert "log-probs" not in plan

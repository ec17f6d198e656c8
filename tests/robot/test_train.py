"""A robot's policy in the loop that trains language models: imitation, then preferences, from recipes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import klent
from klent.cli import app
from klent.config.collection import CollectionSettings
from klent.errors import ConfigError, ModelError
from klent.runs.evaluate import evaluate_model
from klent.runs.export import export_checkpoint
from klent.tasks.collect import collect

PAIRS = {"rollout": {"engine": "dataset"}, "group_size": 2, "reduce": {"over": "pairs"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robot")
    settings = CollectionSettings(
        task="reach", segments=60, length=8, branches=2, behaviours=(0.1, 0.3, 1.0), shard=30, seed=3
    )
    collect(folder / "data", settings, workers=1, progress=lambda done, of: None)
    return folder


@pytest.fixture(scope="module")
def cloning(folder) -> dict:
    return {
        "name": "bc",
        "model": "new",
        "policy": {"kind": "gaussian", "hidden": 24},
        "task": {"segments": str(folder / "data"), "workers": 1},
        "loss": {"cross_entropy": {}},
        "rollout": {"engine": "dataset"},
        "group_size": 1,
        "reduce": {"over": "tokens"},
        "prompts_per_step": 60,
        "update": {"minibatches": 4},
        "steps": 12,
        "optimizer": {"lr": 1e-2, "weight_decay": 0.0},
        "checkpoint": {"every": 4},
        "eval": {"problems": 10},
        "seed": 1,
    }


@pytest.fixture(scope="module")
def cloned(cloning, folder) -> klent.Run:
    return klent.train(cloning, runs=folder / "whole", quiet=True)


def preferring(folder: Path, start: Path, terms: dict, **changes) -> dict:
    return {
        **PAIRS,
        "name": "preferences",
        "model": str(start),
        "policy": {"kind": "gaussian", "hidden": 24},
        "task": {"segments": str(folder / "data"), "compare": 16},
        "loss": terms,
        "prompts_per_step": 32,
        "update": {"minibatches": 2},
        "steps": 6,
        "optimizer": {"lr": 1e-3, "weight_decay": 0.0},
        "eval": None,
        **changes,
    }


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_cloning_learns_to_reach(cloned):
    metrics, (before, after) = rows(cloned.path), rows(cloned.path, "eval.jsonl")
    assert metrics[-1]["objective/loss"] < metrics[0]["objective/loss"] - 0.2
    assert (before["step"], after["step"], after["problems"]) == (0, 12, 10)
    assert after["accuracy"] > before["accuracy"]
    assert after["episode/return"] > before["episode/return"] + 5
    assert "accuracy" in (cloned.path / "report.html").read_text()


def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(cloned, cloning, tmp_path):
    cut = klent.train({**cloning, "steps": 8}, runs=tmp_path, quiet=True)
    config = yaml.safe_load((cut.path / "config.yaml").read_text())
    (cut.path / "config.yaml").write_text(yaml.safe_dump(config | {"steps": 12}))
    again = klent.train(name="bc", runs=tmp_path, resume=True, quiet=True)
    for name in ("model", "optimizer"):
        ours, theirs = (
            one.path / "checkpoints" / "000012" / f"{name}.safetensors" for one in (again, cloned)
        )
        assert ours.read_bytes() == theirs.read_bytes()
    assert rows(again.path, "eval.jsonl")[-1]["correct"] == rows(cloned.path, "eval.jsonl")[-1]["correct"]


def test_it_is_measured_and_exported_as_a_model_is(cloned, tmp_path):
    row = evaluate_model(str(cloned.final), cloned.config)
    assert row["correct"] == rows(cloned.path, "eval.jsonl")[-1]["correct"]
    written = export_checkpoint(cloned.path, tmp_path / "step", step=12, on_damage=print)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (written, cloned.final))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("words", [["chat"], ["sample"]])
def test_it_has_no_words(words, cloned):
    result = CliRunner().invoke(app, [*words, str(cloned.path), *(["hello"] if words == ["sample"] else [])])
    assert result.exit_code == 2
    assert "is a gaussian, which writes no text" in " ".join(result.stderr.replace("│", " ").split())


PPL = {"alpha": 0.03, "gamma": 0.9}
LOSSES = {
    "cpl": {"cpl": {"alpha": 0.03, "rejected_weight": 0.5}},
    "dpo": {"dpo": {"beta": 0.03}},
    **{
        label: {"policy_labeled_preference": {**PPL, "label": label}}
        for label in ("expected", "realised", "pseudo")
    },
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_preferences_are_learnt_from_a_cloned_policy(loss, cloned, folder, tmp_path):
    start = cloned.path / "final"
    run = klent.train(preferring(folder, start, loss), runs=tmp_path, quiet=True)
    metrics = rows(run.path)
    assert sum(row["objective/loss"] for row in metrics[-3:]) < sum(
        row["objective/loss"] for row in metrics[:3]
    )
    before, after = (load_file(path / "model.safetensors") for path in (start, run.path / "final"))
    assert not torch.equal(before["layers.0.weight"], after["layers.0.weight"])
    assert torch.equal(before["centre"], after["centre"])


def test_labels_change_what_is_learnt(cloned, folder, tmp_path):
    def weights(by: str) -> torch.Tensor:
        recipe = preferring(folder, cloned.path / "final", LOSSES["cpl"], name=by)
        recipe["task"] = {**recipe["task"], "by": by}
        return load_file(klent.train(recipe, runs=tmp_path, quiet=True).path / "final" / "model.safetensors")[
            "layers.0.weight"
        ]

    assert not torch.equal(weights("regret"), weights("return"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"noise": 2}}, "begins from task: {segments: FOLDER}"),
        ({"rollout": {"engine": "transformers"}}, "set rollout: {engine: dataset}"),
        (
            {"policy": {"kind": "gaussian", "form": "gaussian", "std": 0.3}},
            "std is not used by form: gaussian",
        ),
        ({"policy": {"kind": "gaussian", "hidden": 25}}, "policy.hidden: 25, and the model of .* has 24"),
        ({"lora": {"rank": 2}}, "is not used: a gaussian has no tokens"),
        ({"loss": {"simpo": {}}, "task": {"gym": "chain_sum"}}, "gives text"),
        ({"update": {"kl": {"divergence": "forward"}}}, "kl is the divergence from the behaviour policy"),
        ({"reference": "new"}, "no term reads logp_ref"),
        ({"reward": "last_number"}, "reward: is not used: task.by says what segments are worth"),
        ({"eval": {"problems": 2, "reward": "last_number"}}, "eval.reward: is not used"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, cloned, folder, tmp_path):
    with pytest.raises((ConfigError, ModelError), match=message):
        klent.train(
            preferring(folder, cloned.path / "final", LOSSES["cpl"], **changes), runs=tmp_path, quiet=True
        )


def test_expected_labels_without_branches_are_refused(cloned, folder, tmp_path):
    plain = CollectionSettings(task="reach", segments=4, length=8, behaviours=(0.1, 1.0))
    collect(tmp_path / "plain", plain, workers=1, progress=lambda done, of: None)
    recipe = preferring(folder, cloned.path / "final", LOSSES["expected"])
    recipe["task"] = {"segments": str(tmp_path / "plain"), "compare": 3}
    with pytest.raises(
        ConfigError, match=r"loss.policy_labeled_preference.label: expected needs extra rollouts"
    ):
        klent.train(recipe, runs=tmp_path, quiet=True)

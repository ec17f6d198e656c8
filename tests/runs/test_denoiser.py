"""A denoiser in the loop that trains language models: one recipe, from the command to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import klent
from klent.config import load_recipe
from klent.errors import ConfigError
from klent.policies.denoiser.network import Denoiser, DenoiserConfig, load_denoiser, save_denoiser
from klent.runs.evaluate import evaluate_model
from klent.runs.export import export_checkpoint
from klent.studies.compare.divergence import write_divergence

CONFIG = DenoiserConfig(
    size=2, hidden=16, layers=1, means=((-2.0, 0.0), (1.0, 1.0)), stds=(0.3, 0.6), weights=(0.5, 0.5)
)


REWARD = '''
def right(vectors, noise, **columns):
    """The first coordinate of each image."""
    assert set(noise) == {2}
    return [vector[0] for vector in vectors]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("denoiser")


@pytest.fixture(scope="module")
def recipe(folder) -> dict:
    save_denoiser(Denoiser(CONFIG, generator=torch.Generator().manual_seed(0)), folder / "net")
    (folder / "rewards.py").write_text(REWARD)
    return {
        "name": "toy",
        "model": str(folder / "net"),
        "policy": {"kind": "denoiser"},
        "task": {"noise": 2},
        "reward": f"{folder / 'rewards.py'}:right",
        "advantage": {"leave_one_out": {}},
        "loss": {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}, "token_kl": {"coef": 0.05}},
        "token_reward": {"kl_in_reward": {"coef": 0.01}},
        "reduce": {"over": "constant"},
        "rollout": {"engine": "policy", "actions": 6},
        "prompts_per_step": 4,
        "group_size": 16,
        "steps": 8,
        "optimizer": {"lr": 3e-3},
        "update": {"minibatches": 2},
        "checkpoint": {"every": 2},
        "eval": {"problems": 16, "samples": 2},
    }


@pytest.fixture(scope="module")
def run(recipe, folder) -> klent.Run:
    return klent.train(recipe, runs=folder / "whole", quiet=True)


def rows(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def timeless(run: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/")) and "per_second" not in k}
        for row in rows(run)
    ]


def test_a_denoiser_is_trained_saved_and_reported(recipe, run):
    metrics, evals = rows(run.path), rows(run.path, "eval.jsonl")
    assert metrics[-1]["reward/mean"] > metrics[0]["reward/mean"] + 0.5
    assert evals[-1]["reward"] > evals[0]["reward"] + 0.5
    first, last = metrics[0], metrics[-1]
    assert first["kl/sequence"] == 0
    assert last["kl/sequence"] == pytest.approx(6 * last["kl/reference"])
    assert last["kl/sequence"] > 0.01
    assert first["policy/sequence_entropy"] == pytest.approx(6 * first["policy/entropy"], rel=1e-4)
    assert max(row["policy/logp_mismatch"] for row in metrics) < 1e-4
    assert not {"policy/collision", "completion/repetition", "forks/threshold"} & set(last)
    sample = rows(run.path, "samples.jsonl")[-1]
    assert len(sample["vector"]) == 2
    assert sample["tokens"] == ["1 ", "2 ", "3 ", "4 ", "5 ", "6 "]
    assert sample["completion"].split()[0].startswith(f"{sample['vector'][0]:.2f}"[:3])
    assert "Samples" in (run.path / "report.html").read_text()
    trained = load_denoiser(run.final)
    assert trained.config == CONFIG
    before = load_file(Path(recipe["model"]) / "model.safetensors")
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    record = json.loads((run.path / "run.json").read_text())
    assert record["model_parameters"] == sum(p.numel() for p in trained.parameters())


def test_a_checkpoint_is_exported_evaluated_and_compared(recipe, run, tmp_path):
    folder = export_checkpoint(run.path, tmp_path / "last", on_damage=print)
    ours, theirs = (load_file(one / "model.safetensors") for one in (folder, run.final))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    settings = load_recipe(run.path / "config.yaml")
    write_divergence(settings, run.path)
    measured = json.loads((run.path / "compare_eval.json").read_text())
    assert measured["tokens"] == 16 * 4 * 6
    assert measured["kl/base_completion"] == pytest.approx(6 * measured["kl/base"])
    last = rows(run.path)[-1]["kl/sequence"]  # before the last update
    assert 0.5 * last < measured["kl/base_completion"] < 3 * last
    row = evaluate_model(str(folder), settings)
    assert row["reward"] == pytest.approx(rows(run.path, "eval.jsonl")[-1]["reward"])


def test_what_is_for_texts_says_so(run):
    with pytest.raises(ConfigError, match="trains a denoiser, which reads and writes no text"):
        run.load()


def test_a_stopped_run_ends_bit_for_bit_as_one_that_was_not(recipe, run, tmp_path):
    cut = klent.train(recipe | {"steps": 4, "eval": recipe["eval"] | {"every": 0}}, runs=tmp_path, quiet=True)
    config = yaml.safe_load((cut.path / "config.yaml").read_text())
    (cut.path / "config.yaml").write_text(yaml.safe_dump(config | {"steps": 8}))
    again = klent.train(name="toy", runs=tmp_path, resume=True, quiet=True)
    assert timeless(again.path) == timeless(run.path)
    ours, theirs = (load_file(one.final / "model.safetensors") for one in (again, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = tmp_path / "other"
    save_denoiser(Denoiser(CONFIG, generator=torch.Generator().manual_seed(9)), other)
    (cut.path / "config.yaml").write_text(yaml.safe_dump(config | {"steps": 9, "model": str(other)}))
    with pytest.raises(ConfigError, match="model: the files that it names are not those of then"):
        klent.train(name="toy", runs=tmp_path, resume=True, quiet=True)


def test_noise_of_another_size_is_refused(recipe, tmp_path):
    wrong = recipe | {"task": {"noise": 3}, "reward": "random", "eval": None}
    with pytest.raises(klent.errors.DataError, match=r"task.noise is 3, and the denoiser makes images of 2"):
        klent.train(wrong, runs=tmp_path / "runs", quiet=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "arm",
    [
        {"method": "flow_grpo"},
        {"method": "diffusion_nft", "token_reward": None},
        {"method": "ddrl", "task": {"noise": 2, "images": "images.npy"}},
        {"method": "rwr", "token_reward": None},
        {"method": "online_dpo", "rollout": {"engine": "policy", "actions": 3, "pairs": "best_worst"}},
    ],
    ids=lambda arm: arm["method"],
)
def test_other_methods_train_a_denoiser(arm, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", np.random.default_rng(0).normal(size=(40, 2)))
    common = {key: recipe[key] for key in ("name", "model", "policy", "task", "reward", "optimizer")}
    small = {"prompts_per_step": 2, "group_size": 4, "steps": 2, "eval": None, "update": {"minibatches": 1}}
    run = klent.train(
        common | small | {"rollout": {"engine": "policy", "actions": 3}} | arm, runs=tmp_path, quiet=True
    )
    last = rows(run.path)[-1]
    assert last["grad/norm"] > 0
    assert last["kl/sequence"] > 0
    assert last["policy/logp_mismatch"] < 1e-4


def test_noised_images_are_the_same_in_a_resumed_run_and_in_any_cut(recipe, tmp_path):
    """DiffusionNFT in two passes of two: bit for bit where it stopped, and to rounding one image at a time."""
    common = {key: recipe[key] for key in ("name", "model", "policy", "task", "reward", "optimizer")}
    nft = {"method": "diffusion_nft", "loss": {"diffusion_nft": {"beta": 0.5}, "token_kl": {"coef": 0.05}}}
    passes = {"update": {"epochs": 2, "minibatches": 2}, "prompts_per_step": 2, "group_size": 4, "eval": None}
    settings = common | nft | passes | {"rollout": {"engine": "policy", "actions": 4}}
    whole = klent.train(settings | {"steps": 4, "checkpoint": {"every": 2}}, runs=tmp_path / "a", quiet=True)
    cut = klent.train(settings | {"steps": 2, "checkpoint": {"every": 2}}, runs=tmp_path / "b", quiet=True)
    config = yaml.safe_load((cut.path / "config.yaml").read_text())
    (cut.path / "config.yaml").write_text(yaml.safe_dump(config | {"steps": 4}))
    again = klent.train(name="toy", runs=tmp_path / "b", resume=True, quiet=True)
    ours, theirs = (load_file(one.final / "model.safetensors") for one in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert timeless(again.path) == timeless(whole.path)
    assert rows(whole.path)[-1]["denoising/kl"] > 0  # of its later optimizer steps
    small = {"update": passes["update"] | {"tokens_per_microbatch": 4}, "steps": 4}
    one = klent.train(settings | small | {"checkpoint": {"every": 0}}, runs=tmp_path / "c", quiet=True)
    for name, value in load_file(one.final / "model.safetensors").items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)

"""Whole runs of the tiny model through the command line, with something in them that goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_folder
from typer.testing import CliRunner, Result

from klent.cli import app, common
from klent.io.files import read_jsonl

CODE = """
import torch
from klent import TokenLoss

def digits(completions, **columns):
    return [sum(ch.isdigit() for ch in text) / max(len(text), 1) for text in completions]

def shouting(completions, **columns):
    raise ValueError("\\x1b]0;owned\\x07\\x1b[31m\\u202etxt.exe")

def tensor(logp, advantage, mask):
    return torch.where(mask, -logp * advantage, 0.0)

def whole(logp, advantage, mask):
    return TokenLoss(tensor(logp, advantage, mask), {})

def pair(logp, advantage, mask):
    loss = tensor(logp, advantage, mask)
    return loss, {"seen": (float(mask.sum()), 1)}

def number(logp, advantage, mask):
    return tensor(logp, advantage, mask), {"seen": 3.0}

def advantages(rewards, group):
    return rewards - rewards.mean(), {}
"""
RECIPE = """\
model: model
method: grpo
task: {data: prompts.jsonl}
reward: code.py:digits
steps: 2
prompts_per_step: 2
group_size: 2
rollout: {max_tokens: 6}
optimizer: {lr: 1e-3}
eval: null
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"say {i}", "answer": str(i)}) + "\n" for i in range(20))
    )
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def run(workdir, monkeypatch):
    for console in (common.out, common.err):
        monkeypatch.setattr(console, "_width", 200)

    def run(*arguments: str) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)

    return run


def words(result: Result) -> str:
    """What was said, without the frame around it."""
    return " ".join(result.output.replace("│", " ").split())


def test_a_run_that_diverges_says_so_and_keeps_its_last_checkpoint(run, workdir):
    result = run("train", "my.yaml", "steps=6", "optimizer.lr=1e39", "optimizer.warmup_steps=0")
    assert result.exit_code == 1, result.output
    assert "the model has diverged: the logits of" in words(result)
    assert "optimizer.lr is too high. Lower it, and start again. There is no checkpoint yet." in words(result)
    assert 0 < len(list(read_jsonl(workdir / "runs/my/metrics.jsonl"))) < 6


def test_a_model_with_nan_in_its_weights_is_named(run, workdir):
    file = workdir / "model" / "model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    save_file({**weights, first: torch.full_like(weights[first], float("nan"))}, file, {"format": "pt"})
    for verb in (["sample", "model", "Hi"], ["sample", "model", "Hi", "--temperature", "0"]):
        result = run(*verb)
        assert result.exit_code == 1
        assert "the model has diverged" in words(result)
    mixed = run("sample", "model", "Hi", "--target-prompt", "{prompt}!", "--alpha", "chernoff")
    assert mixed.exit_code == 1
    assert "the model has diverged" in words(mixed)


def trained(run, workdir: Path, loss: str) -> dict[str, torch.Tensor]:
    (workdir / "loss.yaml").write_text(RECIPE.replace("method: grpo", f"loss: {{'code.py:{loss}': {{}}}}"))
    result = run("train", "loss.yaml", f"name={loss}", "advantage=group_advantage")
    assert result.exit_code == 0, result.output
    return load_file(workdir / "runs" / loss / "final" / "model.safetensors")


def test_a_loss_may_return_its_tensor_alone_and_trains_as_a_token_loss_does(run, workdir):
    whole = trained(run, workdir, "whole")
    for other in ("tensor", "pair"):
        same = trained(run, workdir, other)
        assert all(torch.equal(whole[name], same[name]) for name in whole)
    row = next(iter(read_jsonl(workdir / "runs/pair/metrics.jsonl")))
    assert row["objective/seen"] > 0
    assert run("audit", "code.py:tensor").exit_code == run("audit", "code.py:whole").exit_code


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.code.py:number={}"], "returned the metric `seen` as float; return (sum, count), scalars"),
        (["advantage=code.py:advantages"], "returned tuple, not a tensor"),
    ],
)
def test_what_training_could_not_use_is_refused_before_it(run, overrides, message):
    result = run("train", "my.yaml", *overrides, "--dry-run")
    assert result.exit_code == 2
    assert message in words(result)


def test_one_distinct_prompt_is_trained_on_and_not_evaluated(run, workdir):
    (workdir / "prompts.jsonl").write_text('{"prompt": "say 1", "answer": "1"}\n' * 3)
    result = run("train", "my.yaml", "eval={problems: 2}")
    assert result.exit_code == 0, result.output
    assert "nothing is held out, so there is nothing to evaluate on" in words(result)
    assert "accuracy" not in words(result)
    assert not (workdir / "runs/my/eval.jsonl").exists() or not list(
        read_jsonl(workdir / "runs/my/eval.jsonl")
    )
    measured = run("eval", "my", "eval={problems: 2}")
    assert measured.exit_code == 1
    assert "nothing is held out" in words(measured)


def test_what_a_reward_writes_is_shown_and_not_obeyed(run):
    result = run("train", "my.yaml", "reward=code.py:shouting", "limits.unscorable_steps=1")
    assert result.exit_code == 1
    assert "\\x1b]0;owned\\x07\\x1b[31m\\u202etxt.exe" in result.output
    assert not set("\x1b\x07\u202e") & set(result.output)


@pytest.mark.parametrize("closed", ["reader", "disk"])
def test_a_display_that_fails_ends_no_training(workdir, closed):
    if closed == "disk" and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "klent", "train", "my.yaml"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE if closed == "reader" else full,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        if process.stdout is not None:
            process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(timeout=100) == 0, errors
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors
    assert [row["step"] for row in read_jsonl(workdir / "runs/my/metrics.jsonl")] == [1, 2]
    assert (workdir / "runs/my/final/model.safetensors").is_file()


def test_other_verbs_end_quietly_when_their_reader_goes_away(workdir):
    for verb in (["recipes", "show", "--fields"], ["sample", "model", "Hi", "--max-tokens", "4"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "klent", *verb],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            text=True,
        )
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(timeout=100) in (0, 1)
        assert "Traceback" not in errors
        assert "BrokenPipe" not in errors

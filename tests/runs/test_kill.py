"""A real run in its own process, killed without warning again and again, ends as if nothing had happened."""

import json
import random
import signal
import time
from pathlib import Path

import pytest
from processes import finish, start
from tiny import tiny_folder

from klent.io.files import read_jsonl

RECIPE = """
model: model
method: grpo
task: {data: prompts.jsonl}
reward: reward.py:digits
loss: {kl_in_loss: {coef: 0.05}}
steps: 40
prompts_per_step: 4
group_size: 4
rollout: {max_tokens: 8}
optimizer: {lr: 0.01, schedule: cosine, warmup_steps: 3}
update: {minibatches: 2}
checkpoint: {every: 2, keep: 2}
eval: {problems: 2, samples: 2, every: 10}
"""
MIXED = """
model: model
method: grpo
task: {data: prompts.jsonl}
reward: reward.py:digits
steps: 8
prompts_per_step: 4
group_size: 4
rollout:
  max_tokens: 8
  mixture:
    target: {model: other, prompt: "{prompt} {number}"}
    alpha: {start: 0.2, end: 1.0, steps: 7}
    weights: {ratio: sequence, high: 4.0}
    distill: {divergence: forward, skew: 0.1}
optimizer: {lr: 0.01, schedule: cosine, warmup_steps: 3}
update: {minibatches: 2}
checkpoint: {every: 2, keep: 2}
eval: {problems: 2, samples: 2, every: 4}
"""
CASES = {"grpo": (RECIPE, 40, 8), "mixture": (MIXED, 8, 3)}  # steps, kills
REWARD = """
def digits(completions, **columns):
    return [sum(ch.isdigit() for ch in c) / max(len(c), 1) for c in completions]
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "model")
    tiny_folder(tmp_path / "other", seed=1)
    (tmp_path / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"say {i}", "number": i} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def timeless(path: Path) -> list[dict]:
    clock = ("time/", "memory/", "seconds")
    return [
        {k: v for k, v in row.items() if not k.startswith(clock) and not k.endswith("per_second")}
        for row in read_jsonl(path)
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_run_killed_at_random_points_ends_bit_identical(world, case):
    recipe, steps, kills = CASES[case]
    (world / "tiny.yaml").write_text(recipe)
    output = world / "printed"
    whole = start(world, output, "train", "tiny.yaml", "name=whole")
    assert finish(whole) == 0, output.read_text()

    chance = random.Random(0)
    cut = world / "runs" / "cut"
    arguments = ["train", "tiny.yaml", "name=cut"]
    for kill in range(kills):
        process = start(world, output, *arguments)
        goal = min(lines(cut / "metrics.jsonl") + chance.randint(0, 2 + steps // 10), steps - 1)
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:
            if (cut / "config.yaml").exists() and (kill == 0 or lines(cut / "metrics.jsonl") >= goal):
                break
            time.sleep(0.002)
        time.sleep(
            chance.uniform(0.0, 0.15)
        )  # anywhere in the step: sampling, updating, writing a checkpoint
        process.kill()
        assert finish(process) in (-signal.SIGKILL, 0), output.read_text()
        if (cut / "config.yaml").exists():
            arguments = ["resume", "runs/cut"]
    last = start(world, output, *arguments)
    assert finish(last) == 0, output.read_text()

    for name in ("metrics.jsonl", "eval.jsonl"):
        assert timeless(cut / name) == timeless(world / "runs" / "whole" / name)
    last_step = f"{steps:06d}"
    for name in (
        "samples.jsonl",
        "final/model.safetensors",
        f"checkpoints/{last_step}/optimizer.safetensors",
    ):
        assert (cut / name).read_bytes() == (world / "runs" / "whole" / name).read_bytes()
    assert not list(cut.rglob("*.tmp"))
    assert sorted(p.name for p in (cut / "checkpoints").iterdir()) == [f"{steps - 2:06d}", last_step]

"""A real run in its own process, killed without warning again and again, ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import tiny_folder

from klent.files import read_jsonl

KILLS = 8
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
REWARD = """
def digits(completions, **columns):
    return [sum(ch.isdigit() for ch in c) / max(len(c), 1) for c in completions]
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    rows = [{"prompt": f"say {i}"} for i in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def start(world: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "klent", *arguments],
        cwd=world,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def timeless(path: Path) -> list[dict]:
    clock = ("time/", "memory/", "seconds")
    return [
        {k: v for k, v in row.items() if not k.startswith(clock) and not k.endswith("per_second")}
        for row in read_jsonl(path)
    ]


def test_a_run_killed_at_random_points_ends_bit_identical(world):
    whole = start(world, "train", "tiny.yaml", "name=whole")
    assert whole.wait(timeout=240) == 0, whole.stdout.read()

    chance = random.Random(0)
    cut = world / "runs" / "cut"
    arguments = ["train", "tiny.yaml", "name=cut"]
    for kill in range(KILLS):
        process = start(world, *arguments)
        goal = min(lines(cut / "metrics.jsonl") + chance.randint(0, 6), 39)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if (cut / "config.yaml").exists() and (kill == 0 or lines(cut / "metrics.jsonl") >= goal):
                break
            time.sleep(0.002)
        time.sleep(
            chance.uniform(0.0, 0.15)
        )  # anywhere in the step: sampling, updating, writing a checkpoint
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (cut / "config.yaml").exists():
            arguments = ["resume", "runs/cut"]
    last = start(world, *arguments)
    assert last.wait(timeout=240) == 0, last.stdout.read()

    for name in ("metrics.jsonl", "eval.jsonl"):
        assert timeless(cut / name) == timeless(world / "runs" / "whole" / name)
    for name in ("samples.jsonl", "final/model.safetensors", "checkpoints/000040/optimizer.safetensors"):
        assert (cut / name).read_bytes() == (world / "runs" / "whole" / name).read_bytes()
    assert not list(cut.rglob("*.tmp"))
    assert sorted(p.name for p in (cut / "checkpoints").iterdir()) == ["000038", "000040"]

"""A run folder that no model made: the same bytes every time, and ugly where a test asks for it."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

WORDS = [
    "The",
    " answer",
    " is",
    " ",
    "1",
    "2",
    "7",
    " +",
    " 3",
    " =",
    "\n",
    " so",
    " let",
    "'s",
    " add",
    " first",
]


def config(steps: int) -> dict[str, Any]:
    return {
        "name": "quickstart",
        "model": "smollm2-135m",
        "dtype": "float32",
        "method": "grpo",
        "task": {"gym": "chain_sum", "config": {"min_terms": 2, "max_terms": 3}},
        "reward": "gym",
        "advantage": {"group_advantage": {"scale": "std"}},
        "loss": {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}},
        "steps": steps,
        "seed": 0,
        "prompts_per_step": 8,
        "group_size": 8,
        "rollout": {"engine": "transformers", "max_tokens": 12, "temperature": 1.0},
        "optimizer": {"lr": 2.0e-5, "max_grad_norm": 1.0},
        "eval": {"problems": 64, "samples": 2, "every": 0},
    }


def metrics(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    """A collapse as it looks: entropy falls, reward follows R = -0.1 exp(H) + 0.9 with noise."""
    entropy = 0.28 + 1.72 * math.exp(-4.2 * (step - 1) / max(1, steps)) + rng.gauss(0, 0.04)
    reward = -0.1 * math.exp(entropy) + 0.93 + rng.gauss(0, 0.035)
    delta = -0.35 * math.exp(-3.0 * step / steps) + rng.gauss(0, 0.02)
    rollout, score, train = (
        7.9 + rng.random(),
        0.4 + 0.2 * rng.random(),
        6.3 - 2.5 * step / steps + rng.random(),
    )
    zero = min(0.95, max(0.0, 0.15 + 0.5 * step / steps + rng.gauss(0, 0.07)))
    length = 7.4 - 2 * step / steps + rng.gauss(0, 0.3)
    return {
        "step": step,
        "reward/mean": reward,
        "reward/std": 0.4,
        "reward/unscorable": 0.0,
        "completion/length": length,
        "completion/truncated": max(0.0, 0.22 * math.exp(-3 * step / steps) + rng.gauss(0, 0.01)),
        "policy/entropy": entropy,
        "policy/entropy_delta": delta,
        "policy/entropy_delta_predicted": 1.25 * delta + rng.gauss(0, 0.03),
        "policy/covariance": -delta * 2,
        "policy/logp_mismatch": 2e-5 + 1e-5 * rng.random(),
        "kl/reference": 0.9 * step / steps,
        "kl/update": 0.02 + 0.05 * math.exp(-2 * step / steps) * rng.random(),
        "objective/loss": rng.gauss(0, 0.02),
        "objective/zero_fraction": zero,
        "objective/clip_low": 0.0,
        "objective/clip_high": 0.0,
        "group/zero_variance": zero,
        "grad/norm": 3.1 + rng.random(),
        "update/skipped": 0,
        "optimizer/lr": 2e-5,
        "time/step": rollout + score + train + 0.3,
        "time/rollout": rollout,
        "time/score": score,
        "time/train": train,
        "tokens/rollout": round(64 * length),
        "tokens/train": round(64 * length + 8 * 60),
        "tokens/rollout_per_second": 64 * length / rollout,
        "tokens/train_per_second": (64 * length + 480) / train,
        "memory/peak_gb": 2.7,
    }


def evaluation(step: int, accuracy: float, rng: random.Random) -> dict[str, Any]:
    correct = [[float(rng.random() < accuracy) for _ in range(2)] for _ in range(64)]
    value = sum(map(sum, correct)) / 128
    half = 1.96 * math.sqrt(value * (1 - value) / 64)
    return {
        "step": step,
        "split": "heldout",
        "problems": 64,
        "samples": 2,
        "accuracy": value,
        "low": max(0.0, value - half),
        "high": min(1.0, value + half),
        "pass@2": sum(any(pair) for pair in correct) / 64,
        "entropy": 1.9 if step == 0 else 0.3,
        "seconds": 12.3,
        "unscorable": 0.0,
        "correct": correct,
    }


def samples(
    step: int, steps: int, rng: random.Random, prompts: int = 3, group: int = 4
) -> list[dict[str, Any]]:
    """Completions of one step; with the run they grow shorter and surer."""
    rows = []
    for which in range(prompts):
        first, second = rng.randint(1, 9), rng.randint(1, 9)
        rewards = [float(rng.random() < 0.2 + 0.6 * step / steps) for _ in range(group)]
        middle = sum(rewards) / group
        for reward in rewards:
            right = str(first + second)
            wrong = str(first + second + rng.choice([-2, -1, 1, 2]))
            answer = right if reward else wrong
            tokens = [
                *(rng.sample(WORDS, k=5) if rng.random() < 1.1 - step / steps else []),
                *answer,
                "<|im_end|>",
            ]
            heat = 2.6 * math.exp(-3 * step / steps) + 0.1
            entropy = [heat * rng.random() ** 2 * 2 for _ in tokens]
            rows.append(
                {
                    "step": step,
                    "prompt_id": f"chain_sum/{step * 8 + which}",
                    "prompt": f"State the final answer to the following problem: {first} + {second} =",
                    "completion": "".join(tokens[:-1]),
                    "reward": reward,
                    "advantage": (reward - middle) / 0.5,
                    "finish": "stop",
                    "tokens": tokens,
                    "entropy": entropy,
                    "logp": [-0.7 * h * (0.5 + rng.random()) for h in entropy],
                    "coefficient": [(reward - middle) / 0.5 * (8 / len(tokens)) for _ in tokens],
                }
            )
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder: Path, steps: int = 15, *, finished: bool = True, seed: int = 0, **changes: Any) -> Path:
    """A whole run folder of ``steps`` steps."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = config(steps) | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run = {
        "klent": "0.1.0",
        "command": "klent train recipes/quickstart.yaml",
        "started": "2026-01-02T03:04:05+00:00",
        "python": "3.11.2",
        "torch": "2.13.0",
        "transformers": "5.19.0",
        "device": "cpu, 2 threads",
        "model_parameters": 134515008,
        "finished": "2026-01-02T03:08:17+00:00" if finished else None,
        "wall_seconds": 252.4 if finished else None,
    }
    (folder / "run.json").write_text(json.dumps(run))
    write_lines(folder / "metrics.jsonl", [metrics(step, steps, rng) for step in range(1, steps + 1)])
    write_lines(folder / "eval.jsonl", [evaluation(0, 0.21, rng), evaluation(steps, 0.74, rng)])
    rows = [row for step in range(1, steps + 1) for row in samples(step, steps, rng)]
    write_lines(folder / "samples.jsonl", rows)
    return folder

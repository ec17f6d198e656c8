"""The quickstart on the real model, a step of it, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.real
@pytest.mark.timeout(600)
def test_a_step_of_the_quickstart(tmp_path: Path):
    def klent(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "klent", *arguments],
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    klent("models", "pull", "smollm2-135m")
    output = klent(
        "train", "quickstart", "steps=1", "prompts_per_step=4", "eval.problems=4", "eval.samples=1"
    )
    assert "runs/quickstart/report.html" in output
    run = tmp_path / "runs" / "quickstart"
    (row,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The pretrained model on its own prompts: a chat model's entropy, a reward that is neither 0 nor 1.
    assert 1.0 < row["policy/entropy"] < 3.0
    assert 0.02 < row["reward/mean"] < 0.6
    assert row["policy/logp_mismatch"] < 1e-4
    assert row["policy/row_mismatch"] < 1e-3
    assert row["reward/unscorable"] == 0.0
    assert (run / "report.html").stat().st_size > 50_000
    text = klent("sample", str(run), "What is 2 + 3?", "--max-tokens", "8")
    assert text.strip()

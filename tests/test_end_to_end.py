"""The quickstart on the real model, two steps of it, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.real
@pytest.mark.timeout(600)
def test_two_steps_of_the_quickstart(tmp_path: Path):
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
    overrides = ["steps=2", "prompts_per_step=4", "eval.problems=8", "eval.samples=1", "name=two"]
    output = klent("train", "quickstart", *overrides)
    assert "runs/two/report.html" in output
    run = tmp_path / "runs" / "two"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    # The pretrained model on its own prompts: a chat model's entropy, a reward that is neither 0 nor 1.
    assert 1.0 < rows[0]["policy/entropy"] < 3.0
    assert 0.02 < rows[0]["reward/mean"] < 0.6
    assert rows[0]["policy/logp_mismatch"] < 1e-4
    assert rows[0]["reward/unscorable"] == 0.0
    assert (run / "report.html").stat().st_size > 50_000
    text = klent("sample", str(run), "What is 2 + 3?", "--max-tokens", "8")
    assert text.strip()

"""The checks of a GPU, small and on a CPU: what is sent to a GPU has run before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
QUICK = (
    "solver_is_exact",
    "decoding_kernels_are_exact",
    "recorded_is_eager",
    "recorded_mixture_is_eager",
    "rows_by_memory",
    "bfloat16_numbers_are_the_models",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(RUN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=hidden, timeout=280, check=False)


def test_without_a_gpu_it_says_so_and_ends_well():
    result = run()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("nothing checked: torch ")


def test_the_quick_checks_run_on_a_cpu():
    result = run("--device", "cpu", *QUICK)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" ok ") == len(QUICK)
    assert "0 failed" in result.stdout


def test_a_check_that_fails_is_said():
    code = (
        "import sys; sys.argv = ['run.py', '--device', 'cpu', 'rows_by_memory']\n"
        f"sys.path[:0] = [{str(RUN.parent)!r}, {str(RUN.parents[1])!r}]\n"
        "import run, checks\n"
        "def wrong(device): raise AssertionError('0.5 is not 0.4')\n"
        "checks.CHECKS['rows_by_memory'] = wrong\n"
        "sys.exit(run.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 1
    assert "FAILED  AssertionError: 0.5 is not 0.4" in result.stdout


def test_a_check_that_there_is_not_is_refused():
    result = run("--device", "cpu", "heads")
    assert result.returncode == 2
    assert "no such check: heads; there are head_is_exact" in result.stderr


@pytest.mark.parametrize("target", ["test-gpu", "bench-gpu"])
def test_make_has_it(target):
    makefile = (RUN.parents[2] / "Makefile").read_text()
    assert f"\n{target}:" in makefile

"""`klent runs`: the state of a run is told by its lock, its record and its model; the numbers are the report's."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from report.fake_run import write_lines, write_run
from typer.testing import CliRunner

from klent.cli import app, common
from klent.report.headline import headline
from klent.report.read import read_run
from klent.runs.folder import LOCK, RunFolder, is_in_use
from klent.runs.listing import list_run, list_runs


def make(
    path: Path, *, steps: int = 4, done: int | None = None, finished: bool = True, final: bool = True
) -> Path:
    """A run folder of so many steps of which some are done."""
    run = write_run(path, steps)
    if done is not None:
        rows = (run / "metrics.jsonl").read_text().splitlines()
        (run / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows[:done]))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"finished": record["finished"] if finished else None}))
    if final:
        (run / "final").mkdir()
    return run


def test_states(tmp_path: Path) -> None:
    make(tmp_path / "done")
    make(tmp_path / "stopped", done=2, final=False)
    make(tmp_path / "longer", done=2)  # a finished run that is to go on, stopped
    make(tmp_path / "failed", done=2, final=False, finished=False)
    running = make(tmp_path / "running", done=2, final=False, finished=False)
    make(tmp_path / "study" / "arm-seed0")
    with RunFolder.open(running):
        states = {run.path.name: run.state for run in list_runs(tmp_path)}
    assert states == {
        "done": "done",
        "stopped": "stopped",
        "longer": "stopped",
        "failed": "failed",
        "running": "running",
        "arm-seed0": "done",
    }
    assert list_run(running).state == "failed"  # the lock is released, and nothing says that it finished


def test_a_run_that_ended_early_by_its_own_rule_is_done(tmp_path: Path) -> None:
    run = make(tmp_path / "r", steps=8, done=4)
    config = (run / "config.yaml").read_text()
    write_lines(run / "eval.jsonl", [{"step": step, "accuracy": 0.5, "problems": 4} for step in (0, 2, 4)])
    assert list_run(run).state == "stopped"
    (run / "config.yaml").write_text(config.replace("  every: 0", "  every: 2\n  early_stop: {signal: loss}"))
    assert list_run(run).state == "done"


def test_another_process_holds_the_lock_and_a_killed_one_lets_it_go(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    assert not is_in_use(run)
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from klent.runs.folder import RunFolder
        folder = RunFolder.open(Path({str(run)!r}))
        print("open", flush=True)
        sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    before = (run / LOCK).stat()
    assert is_in_use(run)
    assert (run / LOCK).stat().st_mtime_ns == before.st_mtime_ns  # looked at, and not touched
    process.kill()
    process.wait()
    assert not is_in_use(run)


def test_looking_keeps_nobody_from_starting(tmp_path: Path) -> None:
    run = make(tmp_path / "r")
    for _ in range(3):
        assert not is_in_use(run)
        with RunFolder.open(run):
            assert is_in_use(run)


def test_numbers_are_those_of_the_report(tmp_path: Path) -> None:
    run = make(tmp_path / "r", steps=12)
    listed = list_run(run)
    stats: Any = headline(read_run(run))["stats"]
    assert listed.outcome == stats[0]
    assert listed.entropy == stats[1]
    assert (listed.step, listed.steps) == (12, 12)


def test_damaged_runs_are_listed_too(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text("steps: [")
    (empty / "metrics.jsonl").write_text('{"step": 1, "reward/mean"')
    (tmp_path / "other").mkdir()
    (listed,) = list_runs(tmp_path)
    assert (listed.state, listed.step, listed.steps, listed.outcome) == ("failed", 0, None, None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(common.out, "_width", 200)
    return lambda *arguments: CliRunner(env={"COLUMNS": "200"}).invoke(app, ["runs", *arguments])


def test_the_command_lists_the_newest_first(tmp_path: Path, run: Any) -> None:
    old, new = make(tmp_path / "old"), make(tmp_path / "new", done=2, final=False)
    for folder, when in ((old, 1_000), (new, 2_000)):
        for name in ("metrics.jsonl", "run.json", "config.yaml"):
            os.utime(folder / name, (when, when))
    lines = run(str(tmp_path)).output.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["new", "stopped", "2/4"], ["old", "done", "4/4"]]
    assert "days ago" in lines[1]
    only = run(str(tmp_path), "--state", "done", "--json").output.splitlines()
    (row,) = map(json.loads, only)
    assert (row["run"], row["state"], row["step"], row["changed"]) == ("old", "done", 4, 1_000)
    assert isinstance(row["entropy"]["value"], float)
    assert row["entropy"]["value"] < row["entropy"]["before"]


def test_the_command_says_what_is_not_there(tmp_path: Path, run: Any) -> None:
    assert run(str(tmp_path)).output == f"{tmp_path} holds no runs\n"
    refused = run(str(tmp_path), "--state", "dome")
    assert refused.exit_code == 2
    assert "did you mean `done`?" in refused.output
    assert run(str(tmp_path / "none")).exit_code == 1

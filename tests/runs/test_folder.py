"""One run, one folder, one process in it; logs are cut back to where a checkpoint was."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from klent.errors import RunError
from klent.runs import folder as module
from klent.runs.folder import RunFolder


def quiet(line: str) -> None:
    raise AssertionError(f"nothing was damaged, yet: {line}")


def started(path: Path) -> Path:
    """A run that was started and has ended."""
    with RunFolder.create(path) as run:
        run.config.write_text("name: x\n")
    return path


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)


@pytest.fixture
def other_process(tmp_path: Path):
    """A process that holds ``tmp_path/run`` until it is told to stop."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from klent.runs.folder import RunFolder
        run = RunFolder.create(Path(sys.argv[1]))
        run.config.write_text("name: run")
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_new_run_gets_an_empty_folder_with_its_parents(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "runs" / "first") as run:
        assert run.path.is_dir()
        assert {path.name for path in run.path.iterdir()} <= {".lock", ".owner"}
        assert (run.config.name, run.info.name, run.report.name) == ("config.yaml", "run.json", "report.html")
        assert (run.metrics.name, run.eval.name, run.samples.name, run.forks.name) == module.LOGS
        assert (run.checkpoints.name, run.final.name) == ("checkpoints", "final")


def test_an_existing_run_is_refused_with_three_ways_on(tmp_path: Path) -> None:
    path = started(tmp_path / "first")
    (tmp_path / "first-2").mkdir()
    with pytest.raises(RunError) as caught:
        RunFolder.create(path)
    message = str(caught.value)
    assert f"{path} already holds a run" in message
    assert f"`klent resume {path}`" in message
    assert "--resume" in message
    assert "name=first-3" in message
    with RunFolder.open(path) as run:  # the refusal let go of the lock
        assert run.config.read_text() == "name: x\n"


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty, and not a run"):
        RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file, not a folder"):
        RunFolder.create(tmp_path / "file")
    with pytest.raises(RunError, match="cannot make the run folder"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_start_that_was_killed_before_it_wrote_anything_can_be_repeated(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run").close()
    with RunFolder.create(tmp_path / "run") as run:
        assert run.path.is_dir()


def test_opening_what_is_not_a_run(tmp_path: Path) -> None:
    started(tmp_path / "quickstart")
    with pytest.raises(RunError, match=r"did you mean .*quickstart"):
        RunFolder.open(tmp_path / "quickstrat")
    with pytest.raises(RunError, match=r"there is no run at .*nowhere; .* holds quickstart$"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"holds no runs$"):
        RunFolder.open(tmp_path / "empty" / "run")
    with pytest.raises(RunError, match=r"is not a run: it has no config\.yaml"):
        RunFolder.open(tmp_path)


def test_opening_clears_what_killed_writers_left(tmp_path: Path) -> None:
    path = started(tmp_path / "run")
    for name in (".final.77.tmp", "checkpoints/.000010.77.tmp", "checkpoints/000005"):
        (path / name).mkdir(parents=True)
    (path / ".config.yaml.77.tmp").write_text("half")
    RunFolder.open(path).close()
    left = {str(file.relative_to(path)) for file in path.rglob("*")}
    assert left - {".lock", ".owner"} == {"config.yaml", "checkpoints", "checkpoints/000005"}


@pytest.mark.parametrize("way", [RunFolder.create, RunFolder.open])
def test_a_second_process_is_told_which_one_is_there(tmp_path: Path, impatient, other_process, way) -> None:
    with pytest.raises(RunError) as caught:
        way(tmp_path / "run")
    assert f"is in use by process {other_process.pid} on " in str(caught.value)
    assert "name=" in str(caught.value)


def test_a_killed_process_lets_go(tmp_path: Path, impatient, other_process) -> None:
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    with RunFolder.open(tmp_path / "run") as run:
        owner = (run.path / ".owner").read_text()
    assert re.match(rf"process {os.getpid()} on ", owner)


def test_closing_lets_another_in_and_may_be_repeated(tmp_path: Path, impatient) -> None:
    path = started(tmp_path / "run")
    first = RunFolder.open(path)
    with pytest.raises(RunError, match=f"in use by process {os.getpid()} "):
        RunFolder.open(path)
    first.close()
    second = RunFolder.open(path)
    first.close()  # does not take the folder from the second
    with pytest.raises(RunError, match=f"in use by process {os.getpid()} "):
        RunFolder.open(path)
    second.close()


# --- logs --------------------------------------------------------------------------------


def test_logs_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as run:
        assert run.offsets() == dict.fromkeys(module.LOGS, 0)
        run.metrics.write_bytes(b'{"step": 1}\n')
        run.samples.write_bytes('{"text": "é"}\n'.encode())
        offsets = run.offsets()
        assert offsets == {"metrics.jsonl": 12, "eval.jsonl": 0, "samples.jsonl": 15, "forks.jsonl": 0}
        with open(run.metrics, "ab") as log:
            log.write(b'{"step": 2}\n{"ste')
        run.eval.write_bytes(b'{"step": 2}\n')
        run.truncate_logs(offsets, on_damage=quiet)
        assert run.metrics.read_bytes() == b'{"step": 1}\n'
        assert run.samples.read_bytes() == '{"text": "é"}\n'.encode()
        assert run.eval.read_bytes() == b""
        run.truncate_logs({}, on_damage=quiet)
        assert run.offsets() == dict.fromkeys(module.LOGS, 0)


def test_a_log_that_lost_rows_is_reported_and_keeps_its_whole_ones(tmp_path: Path) -> None:
    lines: list[str] = []
    with RunFolder.create(tmp_path / "run") as run:
        run.metrics.write_bytes(b'{"step": 1}\n{"step"')
        run.truncate_logs({"metrics.jsonl": 36, "eval.jsonl": 10}, on_damage=lines.append)
        assert run.metrics.read_bytes() == b'{"step": 1}\n'
    assert lines == [
        "metrics.jsonl has 19 bytes, but 36 were written: some of its rows are lost",
        "eval.jsonl has 0 bytes, but 10 were written: some of its rows are lost",
    ]


def test_a_log_that_was_edited_is_reported_and_stays_whole_rows(tmp_path: Path) -> None:
    lines: list[str] = []
    with RunFolder.create(tmp_path / "run") as run:
        run.metrics.write_bytes(b'{"step": 1}\n{"step": 2, "mine": 1}\n')
        run.truncate_logs({"metrics.jsonl": 24}, on_damage=lines.append)
        assert run.metrics.read_bytes() == b'{"step": 1}\n'
    assert lines == ["metrics.jsonl was edited: the row across byte 24 is removed"]


# --- debris, links, refusals --------------------------------------------------------------


@pytest.mark.parametrize("lock", [True, False])
def test_a_start_that_was_killed_in_its_first_write_can_be_repeated(tmp_path: Path, lock: bool) -> None:
    path = tmp_path / "run"
    RunFolder.create(path).close()
    for name in (".config.yaml.77.tmp", ".prompts.jsonl.77.tmp"):
        (path / name).write_text("half")
    if not lock:
        for file in path.glob(".lock"):
            file.unlink()
    with RunFolder.create(path):
        assert {entry.name for entry in path.iterdir()} <= {".lock", ".owner"}


def test_hidden_files_of_somebody_else_are_no_debris(tmp_path: Path) -> None:
    (tmp_path / ".notes.77.tmp").write_text("mine")
    (tmp_path / ".lock").write_text("")
    with pytest.raises(RunError, match="is not empty, and not a run"):
        RunFolder.create(tmp_path)
    assert (tmp_path / ".notes.77.tmp").read_text() == "mine"


@pytest.mark.parametrize("name", [".lock", ".owner", "rewards.log", "prompts.jsonl"])
def test_a_new_run_does_not_write_through_a_link(tmp_path: Path, name: str) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(target)
    with pytest.raises(RunError, match=r"is a symbolic link to|is not empty"):
        RunFolder.create(tmp_path / "run")
    assert target.read_text() == "mine"


def test_a_refused_run_takes_its_folders_with_it_and_nothing_else(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "runs" / "first") as run:
        run.abandon()
    assert list(tmp_path.iterdir()) == []
    with RunFolder.create(tmp_path / "runs" / "first") as run:
        run.rewards_log.write_text("printed by a reward")
        run.abandon()
    assert run.rewards_log.read_text() == "printed by a reward"
    path = started(tmp_path / "runs" / "second")
    with RunFolder.open(path) as run:
        run.abandon()
    assert (path / "config.yaml").is_file()

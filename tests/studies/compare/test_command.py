"""The verb: what it passes on, prints and answers."""

import pytest
from typer.testing import CliRunner

from klent.cli import app
from studies.compare.fake import RECIPE, fake_plan, finish


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(RECIPE)
    return tmp_path


def call(*words):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", *words])


def test_help_has_an_example():
    assert "klent compare quickstart --over method=" in call("--help").output


def test_a_dry_run_lists_the_runs_and_writes_nothing(here):
    result = call("my.yaml", "--over", "method=grpo,rloo", "--seeds", "2", "--dry-run")
    assert result.exit_code == 0
    assert "4 runs: 0 done, 0 started, 4 new" in result.output
    assert "runs/my-compare/rloo-seed1" in result.output
    assert not (here / "runs").exists()


def test_the_page_can_be_written_again(here):
    finish(fake_plan(here), lambda arm, seed: 0.5)
    result = call("my.yaml", "--over", "method=grpo,rloo,dapo", "--report-only")
    assert result.exit_code == 0
    page = (here / "runs" / "my-compare" / "compare.html").read_text()
    assert "klent compare my.yaml --over method=grpo,rloo,dapo --seeds 3" in page


@pytest.mark.parametrize(
    "words",
    [
        ["nowhere.yaml"],
        ["my.yaml", "--over", "method"],
        ["my.yaml", "--dry-run", "--report-only"],
        ["my.yaml", "--seeds", "0"],
        ["my.yaml", "stepz=3", "--over", "method=grpo,rloo"],
    ],
)
def test_mistakes_exit_with_2(here, words):
    result = call(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_stop_exits_with_130(here, monkeypatch):
    from klent.studies.compare import run

    def stopped(*_, **__):
        raise run.Stopped("stopped in grpo-seed0; it is saved; go on with: klent compare my.yaml")

    monkeypatch.setattr(run, "run_comparison", stopped)
    result = call("my.yaml", "--over", "method=grpo,rloo")
    assert result.exit_code == 130
    assert "go on with: klent compare my.yaml" in result.output

"""`klent compare RUN RUN`: what is drawn is what the runs logged, and what limits it is said."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from report.fake_run import write_lines, write_run
from typer.testing import CliRunner

from klent.cli import app
from klent.errors import ConfigError, RunError
from klent.report.read import read_run
from klent.studies.overlay import STYLES
from klent.studies.overlay.figures import overlays
from klent.studies.overlay.page import differing, notes, write_overlay


def change(run: Path, **values: Any) -> Path:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | values))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    one = write_run(tmp_path / "one", 5)
    other = change(
        write_run(tmp_path / "other", 9), name="other", optimizer={"lr": 3.0e-5, "max_grad_norm": 1.0}
    )
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    write_lines(other / "metrics.jsonl", [row | {"reward/mean": 0.125 * row["step"]} for row in rows])
    return [one, other]


def test_every_step_of_every_run_is_in_the_figure(runs: list[Path]) -> None:
    read = {path.name: read_run(path, texts=False) for path in runs}
    figures = {figure.name: figure for figure in overlays(read)}
    reward = figures["reward-mean"]
    assert reward.steps == list(range(1, 10))
    assert [(key.label, key.role, key.mark) for key in reward.keys] == [
        ("one", *STYLES[0]),
        ("other", *STYLES[1]),
    ]
    first, second = (key.values for key in reward.keys)
    assert first[5:] == ["–"] * 4
    assert second == ["0.125", "0.250", "0.375", "0.500", "0.625", "0.750", "0.875", "1", "1.12"]
    assert len(reward.x) == 9
    assert reward.x == sorted(reward.x)
    assert "objective-loss" not in figures
    ids = re.findall(r'\bid="([^"]+)"', reward.svg)
    assert len(ids) == len(set(ids))


def test_a_metric_that_one_run_lacks_is_said(runs: list[Path]) -> None:
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    write_lines(runs[0] / "metrics.jsonl", [row | {"reward/extra": 1.0} for row in rows])
    read = {path.name: read_run(path, texts=False) for path in runs}
    extra = next(figure for figure in overlays(read, ["reward/extra"]) if figure.name == "reward-extra")
    assert [key.label for key in extra.keys] == ["one"]
    assert extra.caption == "Not measured: other."


def test_what_differs_and_what_that_limits(runs: list[Path]) -> None:
    read = {path.name: read_run(path, texts=False) for path in runs}
    assert differing(read) == [("steps", ["5", "9"]), ("optimizer.lr", ["2e-05", "3e-05"])]
    assert len(notes(read)) == 1
    change(runs[1], seed=1, group_size=4)
    read = {path.name: read_run(path, texts=False) for path in runs}
    said = " ".join(notes(read))
    assert "held-out scores are not of the same problems" in said
    assert "Steps are not of the same number of completions" in said


def test_the_page_is_the_same_bytes_and_nothing_on_it_runs(runs: list[Path], tmp_path: Path) -> None:
    change(runs[1], model="<script>alert(1)</script>")
    page = write_overlay(runs, tmp_path / "compare.html", command="klent compare <b>")
    text = page.read_text()
    assert write_overlay(runs, tmp_path / "compare.html", command="klent compare <b>").read_text() == text
    assert text.count("<script>") == 1
    assert "alert(1)" in html.unescape(text)
    assert text.count("<figure") == text.count("data-chart=") >= 6
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_runs_of_one_name_are_told_apart_and_a_log_of_trl_is_read(runs: list[Path], tmp_path: Path) -> None:
    twin = write_run(tmp_path / "again" / "one", 3)
    log = tmp_path / "trl"
    log.mkdir()
    history = [{"step": step, "reward": 0.25, "entropy": 1.0} for step in (1, 2)]
    (log / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 2}))
    text = write_overlay([runs[0], twin, log], tmp_path / "page.html").read_text()
    assert f"{tmp_path.name}/one" in text
    assert "again/one" in text
    assert "From " in text


def test_what_is_refused(runs: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    with pytest.raises(ConfigError, match="each once"):
        write_overlay([runs[0], runs[0]], target)
    with pytest.raises(ConfigError, match=r"none of these runs has it; they have .*reward/mean"):
        write_overlay(runs, target, metrics=["reward/men"])
    many = [write_run(tmp_path / f"r{i}", 1) for i in range(len(STYLES) + 1)]
    with pytest.raises(ConfigError, match="at most 10"):
        write_overlay(many, target)
    (runs[0] / "metrics.jsonl").unlink()
    (runs[0] / "eval.jsonl").unlink()
    with pytest.raises(RunError, match="no step and no evaluation yet"):
        write_overlay(runs, target)
    assert not target.exists()


def test_the_command(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def compare(*words: str) -> Any:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["compare", *words])

    answer = compare("one", "other", "--runs", ".", "--out", "page.html")
    assert answer.exit_code == 0, answer.output
    assert "klent compare one other --out page.html" in Path("page.html").read_text()
    for words in (["steps=3"], ["--seeds", "5"], ["--dry-run"], ["--over", "method=grpo"]):
        refused = compare("one", "other", "--runs", ".", *words)
        assert refused.exit_code == 2
        assert words[0].split("=")[0] in refused.output
    assert compare("quickstart", "--out", "x.html").exit_code == 2
    assert compare("one", "nowhere", "--runs", ".").exit_code == 1

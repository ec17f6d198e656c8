"""`klent eval` of runs on given texts: what their own last evaluation measured, without a reward."""

import json
from pathlib import Path

import pytest
from tiny import tiny_folder
from typer.testing import CliRunner

import klent
from klent.cli import app

SFT = {
    "model": "tiny",
    "method": "sft",
    "task": {"data": "sums.jsonl", "heldout": 4},
    "steps": 2,
    "prompts_per_step": 4,
    "optimizer": {"lr": 1e-2},
    "eval": {"problems": 4},
}
DPO = {**SFT, "method": "dpo", "task": {"pairs": "pairs.jsonl", "heldout": 4}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "tiny")
    sums = [{"prompt": f"{i} + {i + 1} = ", "completion": str(2 * i + 1) * (1 + i % 3)} for i in range(12)]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "0 " * (1 + i % 2)}
        for i, row in enumerate(sums)
    ]
    for name, rows in (("sums", sums), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def last(run: Path) -> dict[str, float]:
    return json.loads((run / "eval.jsonl").read_text().splitlines()[-1])


def evaluated(*arguments: str) -> dict[str, float]:
    result = CliRunner().invoke(app, ["eval", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_the_loss_of_held_out_completions_is_that_of_the_runs_end(folder: Path) -> None:
    run = klent.train(SFT, name="sft", quiet=True)
    row, before = evaluated("sft"), evaluated("tiny", "--recipe", "runs/sft/config.yaml")
    assert row["loss"] == pytest.approx(last(Path(run.path))["loss"], rel=1e-5)
    assert before["loss"] > row["loss"] + 0.01
    shown = CliRunner().invoke(app, ["eval", "sft"]).stdout
    assert f"loss: {row['loss']:.3f}" in shown
    assert "4 completions" in shown


def test_pairs_are_compared_with_the_model_that_the_run_began_with(folder: Path) -> None:
    run = klent.train(DPO, name="dpo", quiet=True)
    row, end = evaluated("dpo"), last(Path(run.path))
    for key in ("preference/accuracy", "preference/margin", "preference/chosen", "preference/rejected"):
        assert row[key] == pytest.approx(end[key], rel=1e-4, abs=1e-5), key
    assert abs(row["preference/margin"]) > 1e-3
    start = evaluated("tiny", "--recipe", "runs/dpo/config.yaml")
    assert start["preference/margin"] == pytest.approx(0, abs=1e-6)


def test_nothing_held_out_is_said_before_a_model_is_loaded(folder: Path) -> None:
    klent.train(SFT, name="sft", quiet=True)
    one = json.dumps({"prompt": "1 + 1 = ", "completion": "2"})
    Path("one.jsonl").write_text(one + "\n")
    result = CliRunner().invoke(app, ["eval", "sft", "task.data=one.jsonl", "task.heldout=null"])
    assert result.exit_code != 0
    assert "nothing is held out" in result.output

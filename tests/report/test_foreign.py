"""Logs of TRL and verl, as their trainers write them."""

import json
from pathlib import Path

import pytest

from klent.errors import RunError
from klent.kit.tables import Table
from klent.measure.findings import diagnose
from klent.report import write_report
from klent.report.foreign import TRL, VERL, read_foreign
from klent.report.glossary import GLOSSARY, describe


def trl(folder: Path, steps: int = 20) -> Path:
    """What TRL 1.16's GRPO trainer leaves: one row a logging step, evaluations and a summary among them."""
    history = [
        {
            "step": step,
            "epoch": step / 10,
            "loss": 0.01,
            "grad_norm": 0.5,
            "learning_rate": 1e-6,
            "num_tokens": 1000.0 * step,
            "completions/mean_length": 100.0,
            "completions/min_length": 5.0,
            "completions/clipped_ratio": 0.1,
            "rewards/format_reward/mean": 0.5,
            "rewards/format_reward/std": 0.1,
            "reward": 0.3 + 0.02 * step,
            "reward_std": 0.4,
            "frac_reward_zero_std": 0.2,
            "entropy": 1.5 * 0.8**step,
            "kl": 0.001 * step,
            "clip_ratio/low_mean": 0.01,
            "clip_ratio/high_mean": 0.02,
            "clip_ratio/region_mean": 0.03,
            "step_time": 9.0,
        }
        for step in range(1, steps + 1)
    ]
    history.insert(10, {"step": 10, "eval_reward": 0.4, "eval_loss": 0.1})
    history.append({"step": steps, "train_runtime": 100.0, "train_loss": 0.01})
    for last in (steps // 2, steps):
        checkpoint = folder / f"checkpoint-{last}"
        checkpoint.mkdir(parents=True)
        rows = [row for row in history if row["step"] <= last]
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": last, "log_history": rows}))
    return folder


def verl(folder: Path, steps: int = 20) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        data = {
            "training/global_step": step,
            "actor/entropy": 0.6,
            "actor/pg_clipfrac": 0.35 if step > 8 else 0.002,
            "actor/grad_norm": float("nan") if step == 20 else 0.3,
            "critic/score/mean": 0.4,
            "critic/vf_loss": 0.1,
            "response_length/mean": 800.0,
            "response_length/clip_ratio": 0.02,
            "timing_s/step": 60.0,
            "perf/throughput": 5000.0,
        }
        rows.append(json.dumps({"step": step, "data": data}).replace("NaN", "null"))
    (folder / "run.jsonl").write_text("\n".join(rows) + '\n{"step": 21, "da')
    return folder


def test_trl_is_read_from_its_furthest_state(tmp_path: Path) -> None:
    run = read_foreign(trl(tmp_path / "out"))
    assert [row["step"] for row in run.rows] == list(range(1, 21))
    last = run.rows[-1]
    assert last["reward/mean"] == pytest.approx(0.7)
    assert last["policy/entropy"] == pytest.approx(1.5 * 0.8**20)
    assert last["objective/clip"] == 0.03
    assert last["reward/format_reward"] == 0.5
    assert run.notes[0] == "Read from TRL's trainer state: checkpoint-20/trainer_state.json."
    unknown = "completions/min_length, rewards/format_reward/std"
    assert run.notes[1] == f"Columns that klent does not know: {unknown}."
    assert [found.name for found in diagnose(Table(run.rows))] == ["entropy_collapse"]


def test_verl_is_read_from_its_file_logger(tmp_path: Path) -> None:
    run = read_foreign(verl(tmp_path / "out"))
    assert len(run.rows) == 20
    assert run.rows[0]["tokens/per_second"] == 5000.0
    assert run.notes[1] == "Columns that klent does not know: critic/vf_loss."
    found = {finding.name: finding for finding in diagnose(Table(run.rows))}
    assert set(found) == {"clip_saturation", "nonfinite"}
    assert found["clip_saturation"].onset in (9, 10)
    assert found["nonfinite"].onset == 20


def test_tensorboard_files_are_read_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs" / "a")) as writer:
        writer.add_scalar("step", 1.0, 1)  # a tag of that name is no step
        for step in range(1, 5):
            writer.add_scalar("train/reward", 0.1 * step, step)
            writer.add_scalar("own/thing", 1.0, step)
    run = read_foreign(tmp_path)
    assert [row["reward/mean"] for row in run.rows] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert run.notes[1] == "Columns that klent does not know: own/thing."


@pytest.mark.parametrize("make", [trl, verl])
def test_it_gets_a_page(tmp_path: Path, make) -> None:
    folder = make(tmp_path / "out")
    text = write_report(folder).read_text()
    assert (folder / "report.html").exists()
    assert "Columns that klent does not know" in text
    assert "has not finished" not in text
    assert 'id="diagnosis"' in text


def test_other_folders_are_refused_and_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"step": 1, "text": "no log"}\n')
    assert read_foreign(tmp_path) is None
    with pytest.raises(RunError, match="no log of TRL"):
        write_report(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": [')
    with pytest.raises(RunError, match="damaged"):
        write_report(tmp_path)


def test_every_name_that_columns_get_is_described() -> None:
    assert {*TRL.values(), *VERL.values()} <= set(GLOSSARY)
    assert describe("reward/format_reward") is GLOSSARY["reward/<name>"]

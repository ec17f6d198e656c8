"""Run folders as they are found: whole, killed, damaged, empty, huge."""

import json
import shutil
from pathlib import Path

import pytest

from klent.errors import RunError
from klent.report import read
from klent.report.read import early_middle_late, read_run
from klent.report.samples import choose

from .fake_run import samples, write_lines, write_run


def test_a_whole_run_is_read_without_a_word(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "r", steps=5))
    assert run.notes == []
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in run.heldout] == [0, 5]
    assert {sample.step for sample in run.samples} == {1, 3, 5}
    assert run.config["method"] == "grpo"


def test_a_line_cut_off_by_a_kill_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=5)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "reward/me')
    run = read_run(folder)
    assert len(run.rows) == 5
    assert run.notes == ["metrics.jsonl: skipped 1 damaged line."]


def test_a_step_written_twice_counts_once_with_its_last_row(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=3)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 2, "reward/mean": 9.0}) + "\n")
    run = read_run(folder)
    assert [row["step"] for row in run.rows] == [1, 2, 3]
    assert run.rows[1]["reward/mean"] == 9.0


def test_values_that_are_no_numbers_are_no_points(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=3)
    lines = [
        '{"step": 1, "x": NaN}',
        '{"step": 2, "x": null}',
        '{"step": 3, "x": "high"}',
        '{"step": 4, "x": 2}',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n[1]\n{"step": true}\n{"step": "5"}\n')
    run = read_run(folder)
    assert run.series("x") == ([4], [2.0])
    assert run.has("x")
    assert not run.has("y")


@pytest.mark.parametrize("left", ["config.yaml", "run.json", "metrics.jsonl"])
def test_one_file_is_enough(tmp_path: Path, left: str) -> None:
    whole, folder = write_run(tmp_path / "whole", steps=2), tmp_path / "r"
    folder.mkdir()
    shutil.copy(whole / left, folder / left)
    run = read_run(folder)
    missing = {"config.yaml", "run.json", "metrics.jsonl"} - {left}
    assert all(any(name in note for note in run.notes) for name in missing)
    assert run.samples == []


def test_broken_config_and_record_are_said_and_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=1)
    (folder / "config.yaml").write_text("name: [quickstart\n")
    (folder / "run.json").write_text('{"klent": ')
    run = read_run(folder)
    assert run.config == {}
    assert run.config_text == "name: [quickstart\n"
    assert run.notes == [
        "config.yaml could not be read: it is incomplete.",
        "run.json could not be read: it is incomplete.",
    ]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing: no such run folder"):
        read_run(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(RunError, match=r"has none of config\.yaml, run\.json and metrics\.jsonl"):
        read_run(tmp_path)


def test_of_many_samples_only_three_steps_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    folder, rng = write_run(tmp_path / "r", steps=3), random.Random(0)
    rows = [row for step in range(1, 201) for row in samples(step, 200, rng)]
    write_lines(folder / "samples.jsonl", rows)
    parsed = []
    monkeypatch.setattr(read, "_object", lambda line, real=read._object: parsed.append(line) or real(line))
    found = read._samples(folder / "samples.jsonl", [])
    assert {sample.step for sample in found} == {1, 100, 200}
    assert len(parsed) == len(found) == 36


def test_a_step_with_thousands_of_completions_is_thinned_over_its_prompts(tmp_path: Path) -> None:
    import random

    folder = write_run(tmp_path / "r", steps=1)
    write_lines(folder / "samples.jsonl", samples(1, 1, random.Random(0), prompts=500, group=8))
    found = read_run(folder).samples
    assert len(found) <= read.SAMPLES_PER_STEP
    assert len({sample.prompt_id for sample in found}) > 40


def test_steps_whose_completions_differ_in_advantage_come_before_others(tmp_path: Path) -> None:
    """And an advantage quoted in a text is none."""
    folder = write_run(tmp_path / "r", steps=1)
    flat = {"prompt": "p", "completion": '"advantage": 9', "tokens": ["a"], "advantage": 0.0}
    rows = [{"step": step, **flat, "advantage": -0.5 if step in (4, 6) else -0.0} for step in range(1, 10)]
    write_lines(folder / "samples.jsonl", rows)
    assert [sample.step for sample in read_run(folder).samples] == [4, 6]
    write_lines(folder / "samples.jsonl", [{"step": step, **flat} for step in range(1, 10)])
    run = read_run(folder)
    assert [sample.step for sample in run.samples] == [1, 5, 9]
    assert [stage.note for stage in choose(run.samples).stages] == ["every logged advantage is 0"] * 3


def test_a_step_named_inside_a_text_is_not_the_rows_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=1)
    write_lines(folder / "samples.jsonl", [{"completion": '"step": 99', "tokens": ["a"], "step": 4}])
    assert [sample.step for sample in read_run(folder).samples] == [4]


def test_uneven_token_lists_are_filled_up_and_cut(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", steps=1)
    row = {"step": 1, "tokens": ["a", "b"], "entropy": [1.0], "logp": [-1.0, -2.0, -3.0], "coefficient": None}
    write_lines(folder / "samples.jsonl", [row, row])
    (sample,) = read_run(folder).samples
    assert (sample.entropy, sample.logp, sample.coefficient) == ([1.0, None], [-1.0, -2.0], [None, None])
    assert (sample.reward, sample.advantage) == (None, None)


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [([], []), ([3], [3]), ([3, 9], [3, 9]), ([1, 2, 9], [1, 2, 9]), ([*range(9)], [0, 4, 8])],
)
def test_early_middle_late(steps: list[int], chosen: list[int]) -> None:
    assert early_middle_late(steps) == chosen

"""The section that holds certainty against truth: what it draws, when, and what it says of the peak."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from klent.report import write_report
from klent.report.certainty import figures, peak_sentence, stopped
from klent.report.read import RunData, read_run

from .fake_run import write_lines, write_run

ACCURACY = [0.40, 0.60, 0.50, 0.45]


def unlabelled(folder: Path, accuracies: list[float] = ACCURACY, **changes: Any) -> Path:
    """A run without rewards that was evaluated every 5 steps."""
    write_run(folder, **changes)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [row | {"reward/mean": None} for row in rows])
    evals = []
    for place, accuracy in enumerate(accuracies):
        correct = [[1.0, 1.0, 0.0, 0.0]] * 10
        correct = [[1.0] * 4 if k < round(10 * accuracy) else [0.0] * 4 for k in range(10)]
        row = {"step": 5 * place, "split": "heldout", "problems": 10, "samples": 4, "accuracy": accuracy}
        row |= {
            "low": accuracy - 0.1,
            "high": accuracy + 0.1,
            "correct": correct,
            "entropy": 1.0 - 0.2 * place,
        }
        row |= {"agreement": 0.5 + 0.1 * place, "kept": accuracy + 0.1, "majority": 0.6, "accuracy@0": 0.55}
        evals.append(row | {"accuracy@0.5": 0.5, "skewness": 1.0 + place, "skewness/position": 0.5 + place})
    write_lines(folder / "eval.jsonl", evals)
    return folder


def coordinates(svg: str, gid: str) -> list[tuple[float, float]]:
    """The points of a line, from its path."""
    drawn = re.search(rf'id="[a-z]+\.{gid}">\s*<path d="([^"]*)"', svg)
    assert drawn is not None, gid
    numbers = [float(value) for value in re.findall(r"-?\d+(?:\.\d+)?", drawn[1])]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_the_peak_is_marked_at_the_highest_accuracy(tmp_path: Path) -> None:
    figure = figures(read_run(unlabelled(tmp_path / "run")))[0]
    assert (figure.name, figure.steps) == ("peak", [0, 5, 10, 15])
    line = coordinates(figure.svg, "accuracy")
    highest = min(line, key=lambda point: point[1])  # SVG counts downwards
    assert line.index(highest) == 1
    marker = re.search(r'id="peak\.peak">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', figure.svg, re.S)
    assert marker is not None
    assert (float(marker[1]), float(marker[2])) == pytest.approx(highest, abs=0.02)
    assert [key.label for key in figure.keys] == ["held-out accuracy", "kept", "agreement", "loss"]
    assert figure.keys[0].values == ["0.40", "0.60", "0.50", "0.45"]


def test_what_is_said_of_the_peak(tmp_path: Path) -> None:
    rows = read_run(unlabelled(tmp_path / "run")).heldout
    # 2 of 10 problems are solved at the peak and not at the end (6 against round(4.5) = 4)
    assert peak_sentence(rows) == (
        "Accuracy was highest at step 5, 0.60, and ended at 0.45: −0.20 ± 0.26 on the same problems. The "
        "highest of 4 evaluations is partly luck."
    )
    assert peak_sentence(rows[:2]) == "Accuracy is highest at the end, step 5."


def test_temperatures_before_at_the_peak_and_after(tmp_path: Path) -> None:
    figure = figures(read_run(unlabelled(tmp_path / "run")))[1]
    assert [key.label for key in figure.keys] == ["before training", "step 5, the peak", "step 15"]
    before = coordinates(figure.svg, "at-0")
    assert len(before) == 3  # greedy, 0.5 and the run's own temperature, 1
    left, middle, right = (x for x, _ in before)
    assert (middle - left) == pytest.approx(right - middle, abs=0.05)


def test_skewness_before_during_and_after(tmp_path: Path) -> None:
    figure = figures(read_run(unlabelled(tmp_path / "run")))[2]
    assert figure.keys[0].values == ["1.00", "2.00", "3.00", "4.00"]
    heights = [y for _, y in coordinates(figure.svg, "skewness")]
    assert heights == sorted(heights, reverse=True)


def test_a_run_with_right_answers_and_two_evaluations_has_no_such_section(plain_page: Path) -> None:
    assert figures(read_run(plain_page.parent)) == []
    assert "certainty-section" not in plain_page.read_text()
    assert figures(RunData(plain_page)) == []


def test_the_page_shows_the_section_and_its_facts(tmp_path: Path) -> None:
    text = write_report(unlabelled(tmp_path / "run")).read_text()
    for part in (
        "Certainty and truth",
        'data-figure="peak"',
        'data-figure="temperatures"',
        "accuracy of a vote",
    ):
        assert part in text
    assert re.search(r"<dt>skewness of the logits</dt><dd>1.00 → 4.00</dd>", text)


@pytest.mark.parametrize(
    ("signal", "step"), [("kept", 5), ("agreement", 15), ("entropy", 15), ("kept", None)]
)
def test_which_weights_an_early_stop_left(tmp_path: Path, signal: str, step: int | None) -> None:
    early = {"signal": signal, "patience": 2, "margin": 0.0} if step is not None else None
    folder = unlabelled(tmp_path / "run", eval={"early_stop": early})
    said = stopped(read_run(folder))
    assert [re.search(r"step (\d+) was the best", line)[1] for line in said] == ([str(step)] if early else [])
    damaged = yaml.safe_load((folder / "config.yaml").read_text()) | {"eval": {"early_stop": {"signal": 7}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(damaged))
    assert stopped(read_run(folder)) == []

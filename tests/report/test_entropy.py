"""The section on entropy: what its figures and tables show of the rows."""

import json
from pathlib import Path

import pytest

from klent.report import entropy, write_report
from klent.report.read import RunData, read_run

from .fake_run import write_lines, write_run
from .svg_data import Page, group, marker

EXTRA = {
    "covariance/top_0.02": 9.0,
    "covariance/top_0.2": 9.0,
    "covariance/top_2": 4.0,
    "covariance/top_20": 1.0,
    "selected/fraction": 0.25,
    "selected/entropy": 2.0,
    "rest/entropy": 0.5,
    "selected/covariance": 1.5,
    "rest/covariance": 0.1,
    "forks/threshold": 1.0,
    "forks/entropy_share": 0.7,
    "forks/token_share": 0.2,
    "forks/gradient_share": 0.3,
    "policy/collision": 0.6,
    "law/ceiling": 0.8,
    "law/ceiling_low": 0.7,
    "law/ceiling_high": 0.9,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_run(tmp_path / "r", 15)
    rows = [json.loads(line) | EXTRA for line in (made / "metrics.jsonl").read_text().splitlines()]
    write_lines(made / "metrics.jsonl", rows)
    words = [{"word": "<b>so</b>", "entropy": 2.0, "count": 7}, {"word": " \n", "entropy": 1.0, "count": 2}]
    write_lines(made / "forks.jsonl", [{"step": step, "forks": words} for step in range(1, 16)])
    samples = [json.loads(line) for line in (made / "samples.jsonl").read_text().splitlines()]
    write_lines(made / "samples.jsonl", [row | {"chosen": {"mask": [0]}} for row in samples])
    return made


def test_every_figure_is_there(folder: Path) -> None:
    names = [figure.name for figure in entropy.figures(read_run(folder))]
    assert names == ["theorem", "covariance", "three-ways", "forks", "ceiling-online", "order-two"]


def test_a_run_without_the_metrics_has_no_figure() -> None:
    run = RunData(Path("r"), rows=[{"step": 1, "reward/mean": 0.1}, {"step": 2, "reward/mean": 0.2}])
    assert entropy.figures(run) == []
    assert entropy.ways(run) == []
    assert entropy.fork_tables(run) == []


def test_a_point_on_the_line_was_predicted_right() -> None:
    pairs = [(-0.4, -0.4), (-0.2, -0.1), (0.1, 0.1)]
    rows = [
        {"step": i + 1, "policy/entropy_delta_predicted": p, "policy/entropy_delta": m}
        for i, (p, m) in enumerate(pairs)
    ]
    svg = entropy.theorem(RunData(Path("r"), rows=rows)).svg
    (x1, y1), (x2, y2), (x3, y3) = (marker(svg, f"theorem.update-{i}") for i in (1, 2, 3))
    slope = (y3 - y1) / (x3 - x1)
    assert slope < 0  # pixels run downwards
    above = y1 + slope * (x2 - x1) - y2
    assert above > 3  # measured −0.1 stands above the predicted −0.2
    assert group(svg, "theorem.as-predicted")


def test_of_few_tokens_the_same_tail_is_drawn_once(folder: Path) -> None:
    figure = entropy.covariance(read_run(folder))
    assert [key.label for key in figure.keys] == ["top 0.2%", "top 2%", "top 20%", "all"]
    assert "the same single token" in figure.caption


def test_three_ways_in_numbers(folder: Path) -> None:
    rows = dict(entropy.ways(read_run(folder)))
    assert list(rows) == ["all", "selected", "rest"]
    assert rows["selected"][:2] == ["25% → 25%", "2.00 → 2.00"]
    assert rows["rest"][0] == "75% → 75%"


def test_fork_words_are_text_and_tokens_that_were_chosen_are_outlined(folder: Path) -> None:
    text = write_report(folder).read_text()
    page = Page(text)
    assert "<b>so</b>" in page.texts
    assert " ⏎" in page.texts
    section = text[text.index('id="entropy-section"') : text.index('id="accuracy-section"')]
    assert section.count("<caption>step ") == 3
    chosen = [attrs for _, attrs in page.tags if "chosen" in (attrs.get("class") or "").split()]
    assert len(chosen) > 10
    assert "chosen by the recipe's selector" in text
    assert page.crossed == []


def test_what_goes_wrong_comes_first_with_its_onset_and_remedy(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    write_lines(folder / "metrics.jsonl", [r | {"update/skipped": int(r["step"] > 9)} for r in rows])
    text = write_report(folder).read_text()
    words = " ".join(Page(text).texts)
    assert text.index('id="diagnosis"') < text.index('id="findings"')
    assert "Loss or gradient not finite" in words
    assert "since step 10" in words
    assert "updates were skipped" not in words  # said once

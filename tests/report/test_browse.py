"""The completions of a run in its page: what is held, what is beside it, and that a large run stays small."""

import csv
import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from klent.io.files import write_atomic
from klent.measure.findings import diagnose
from klent.report import browse, write_report
from klent.report.browse import Brief, read_briefs, thinned
from klent.report.page import page
from klent.report.read import read_run

from .fake_run import write_lines, write_run


def held(text: str, name: str = "samples") -> Any:
    found = re.search(rf'<script type="application/json" id="{name}-data">(.*?)</script>', text, flags=re.S)
    return json.loads(found[1]) if found else None


def test_the_page_holds_every_completion_with_its_numbers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 4)
    written = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    data = held(write_report(run).read_text())
    assert len(data["rows"]) == len(written) == 48
    for row, sample in zip(data["rows"], written, strict=True):
        step, prompt, text, reward, advantage, finish, entropy = row
        assert data["prompts"][prompt] == [sample["prompt_id"], sample["prompt"]]
        assert (step, text, reward, finish) == (
            sample["step"],
            sample["completion"],
            sample["reward"],
            sample["finish"],
        )
        assert advantage == pytest.approx(sample["advantage"], rel=1e-4)
        assert entropy == pytest.approx(sum(sample["entropy"]) / len(sample["entropy"]), rel=1e-4)
    assert not (run / "report").exists()
    table = held((run / "report.html").read_text(), "metrics")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert table[0] == list(rows[0])
    assert [row[0] for row in table[1:]] == [1, 2, 3, 4]
    assert table[3][table[0].index("policy/entropy")] == pytest.approx(rows[2]["policy/entropy"], rel=1e-4)


def test_findings_say_which_completions_they_are_about(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 8)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [row | {"completion/truncated": 0.9} for row in rows])
    findings = diagnose(read_run(run).table)
    cut = next(finding for finding in findings if finding.name == "truncation")
    assert [cut.title, cut.onset, None, "length"] in held(write_report(run).read_text())["findings"]


def test_damaged_and_doubled_lines(tmp_path: Path) -> None:
    """A resumed run writes a step's rows again; a killed one leaves half a line."""
    row = {"step": 2, "prompt_id": "a", "prompt": [{"role": "user"}], "completion": "x", "reward": None}
    other = row | {"step": 1, "reward": 0.123456, "entropy": [1.0, None, 2.0]}
    lines = [json.dumps(row), json.dumps(row), "{", '{"step": true}', "[]", json.dumps(other), '{"step": 3']
    (tmp_path / "samples.jsonl").write_text("\n".join(lines))
    first, second = read_briefs(tmp_path / "samples.jsonl")
    assert first == Brief(1, "a", '[{"role": "user"}]', "x", 0.12346, None, "", 1.5)
    assert second == first._replace(step=2, reward=None, entropy=None)
    assert read_briefs(tmp_path / "nothing.jsonl") == []


def test_whole_steps_are_left_out_evenly() -> None:
    briefs = [
        Brief(step, "a", "p", "x" * 60, 1.0, 0.0, "stop", 0.5) for step in range(1, 101) for _ in range(3)
    ]
    kept = thinned(briefs, 3000)
    steps = sorted({briefs[index].step for index in kept})
    assert len(kept) == 3 * len(steps) == 27
    assert (steps[0], steps[-1]) == (1, 100)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1
    assert list(thinned(briefs, 10**9)) == list(range(300))


def parts_of(run: Path) -> dict[int, list[Any]]:
    """Number of a completion, from 0 -> it, as the parts beside the page have it."""
    rows: dict[int, list[Any]] = {}
    for file in sorted((run / "report").glob("samples-*.js")):
        first, data = re.fullmatch(r"klentPart\((\d+),(.*)\);\n", file.read_text()).groups()
        part = json.loads(data)
        for index, row in enumerate(part["rows"]):
            assert rows.setdefault(int(first) + index, [*part["prompts"][row[1]], *row[2:]])
    return rows


def test_of_a_large_run_the_rest_is_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse, "IN_PAGE", 8000)
    monkeypatch.setattr(browse, "IN_PART", 3000)
    run = write_run(tmp_path / "r", 15)
    write_atomic(run / "report" / "samples-9999.js", "of a longer run")
    text = write_report(run).read_text()
    data, every = held(text), parts_of(run)
    written = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [every[number][:4] for number in range(180)] == [
        [one["prompt_id"], one["prompt"], one["completion"], one["reward"]] for one in written
    ]
    assert 0 < len(data["rows"]) == len(data["numbers"]) < 90
    assert [every[number][2] for number in data["numbers"]] == [row[2] for row in data["rows"]]
    files = sorted((run / "report").glob("samples-*.js"))
    assert [run / name for name, *_ in data["parts"]] == files
    assert len(files) > 5
    assert [size for *_, size in data["parts"]] == [file.stat().st_size for file in files]
    steps = [(first, last) for _, _, first, last, _ in data["parts"]]
    assert (steps[0][0], steps[-1][1]) == (1, 15)
    assert f"{len(data['rows'])} of the 180 completions" in text
    assert 'href="report/metrics.csv" download' in text
    assert held(text, "metrics") is None
    with open(run / "report" / "samples.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 180
    assert table[7]["completion"] == every[7][2]
    with open(run / "report" / "metrics.csv", newline="") as file:
        metrics = list(csv.DictReader(file))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["reward/mean"]) for row in metrics] == [row["reward/mean"] for row in rows]


def test_a_text_that_is_markup_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 2)
    evil = "</script><script>document.title='taken'</script>\u2028<!--"
    lines = (run / "samples.jsonl").read_text().splitlines()
    write_lines(run / "samples.jsonl", [json.loads(line) | {"completion": evil} for line in lines])
    text = write_report(run).read_text()
    assert "document.title='taken'</script>" not in text
    assert {row[2] for row in held(text)["rows"]} == {evil}


def test_a_run_of_ten_thousand_steps_fits_into_five_megabytes(tmp_path: Path) -> None:
    """Texts and metrics are cut by characters, whatever there is of them, and the page holds few of 100,000 texts."""
    run = read_run(write_run(tmp_path / "r", 3))
    one = run.rows[-1]
    rows = [one | {"step": step, "policy/entropy": 1 / step} for step in range(1, 10_001, 10)]
    briefs = [
        Brief(step, f"p/{step}", f"prompt {step}", f"{step} and some words " * 20, 1.0, 0.5, "stop", 0.25)
        for step in range(1, 10_001)
        for _ in range(10)
    ]
    text = page(dataclasses.replace(run, rows=rows), briefs=briefs)
    assert 400_000 < len(text) < 2_000_000
    assert 200 < len(held(text)["rows"]) < 2_000
    assert text.count("<") < 15_000  # what a browser takes its time for


def test_every_section_has_an_address(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path / "r", 15)).read_text()
    sections = re.findall(r'<section id="([\w-]+)"', text)
    assert len(sections) >= 7
    for section in sections:
        assert f'<a class="permalink" href="#{section}"' in text

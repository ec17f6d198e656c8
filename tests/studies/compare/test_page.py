"""The page and its tables, from folders that were written by hand."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from klent.report.page import hash_of
from klent.studies.compare.figures import pass_family
from klent.studies.compare.page import as_csv, notes, page, resolution, sentence, table, write_page
from klent.studies.compare.results import collect
from studies.compare.fake import fake_plan, finish

CHANCE = {"grpo": 0.35, "rloo": 0.35, "dapo": 0.95}


@pytest.fixture
def plan(tmp_path):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: CHANCE[arm])
    return plan


def test_the_better_arm_is_found_and_the_equal_one_is_not(plan):
    results = collect(plan)
    for measure in ("pass@1", "pass@4"):
        verdicts = {item.arm: item.verdict for item in results.contrasts[measure]}
        assert verdicts == {
            "rloo": "no difference",
            "dapo": "better" if measure == "pass@1" else verdicts["dapo"],
        }
    html = page(results)
    assert "▲ better" in html
    assert "no difference" in html


def test_numbers_of_the_table_are_those_of_the_runs(plan):
    results = collect(plan)
    shown = table(results)
    assert shown.heads == ["arm", "seeds", "pass@1", "pass@2", "pass@4", "entropy", "KL to base", "time"]
    grpo = next(row for row in shown.rows if row[0][0] == "grpo")
    tables = [
        np.array(json.loads(line)["correct"])
        for run in plan.runs
        if run.arm == "grpo"
        for line in [(run.folder / "eval.jsonl").read_text().splitlines()[-1]]
    ]
    assert grpo[2][0] == f"{np.mean(tables):.3f}"
    assert grpo[4][0] == f"{np.mean([t.max(axis=1).mean() for t in tables]):.3f}"
    assert grpo[6][0] == "0.250"
    assert grpo[7][0] == "6.0 s"


def test_graded_rewards_are_compared_by_their_mean(tmp_path):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: CHANCE[arm], graded=0.5)
    results = collect(plan)
    assert list(results.contrasts) == ["mean reward"]
    verdicts = {item.arm: item.verdict for item in results.contrasts["mean reward"]}
    assert verdicts == {"rloo": "no difference", "dapo": "better"}
    assert table(results).heads == ["arm", "seeds", "mean reward", "entropy", "KL to base", "time"]
    first = json.loads((plan.runs[0].folder / "eval.jsonl").read_text().splitlines()[-1])["rewards"]
    html = page(results)
    assert f"<td>{np.mean(first[:-1]):.3f}</td>" in html  # without the problem that could not be scored
    assert "Held-out mean reward" in html
    assert "pass@" not in html
    write_page(plan)
    data = json.loads((plan.folder / "compare.json").read_text())
    assert data["runs"][0]["reward"] == pytest.approx(np.mean(first[:-1]))
    assert (plan.folder / "compare.csv").read_text().startswith("arm,seed,mean reward,entropy")


def test_csv_and_json_say_the_same(plan):
    write_page(plan)
    rows = list(csv.DictReader((plan.folder / "compare.csv").open()))
    data = json.loads((plan.folder / "compare.json").read_text())
    assert len(rows) == len(data["runs"]) == 9
    for row, run in zip(rows, data["runs"], strict=True):
        assert (row["arm"], int(row["seed"])) == (run["arm"], run["seed"])
        assert float(row["pass@2"]) == pytest.approx(run["pass"]["2"], abs=1e-6)
        assert float(row["base_pass@2"]) == pytest.approx(run["base_pass"]["2"], abs=1e-6)
    assert [item["arm"] for item in data["comparisons"]["pass@1"]] == ["rloo", "dapo"]


def test_the_csv_has_the_entropy_of_the_base_model(plan):
    results = collect(plan)
    first, second, *rest = results.runs
    runs = [replace(first, entropy_before=2.5), replace(second, entropy_before=float("nan")), *rest]
    rows = list(csv.DictReader(as_csv(replace(results, runs=runs)).splitlines()))
    assert [row["base_entropy"] for row in rows[:3]] == ["2.500000", "", "1.000000"]
    assert rows[0]["entropy"] == "1.000000"


def test_the_same_runs_give_the_same_bytes(plan):
    first = write_page(plan).read_bytes()
    assert write_page(plan).read_bytes() == first


def test_the_page_loads_nothing_and_its_tags_close(plan):
    html = write_page(plan, command="klent compare my.yaml").read_text()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', html)
    assert html.count("<script>") == 1
    script = html[html.index("<script>") + len("<script>") : html.rindex("</script>")]
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src '{hash_of(script)}'" in html
    assert '<button id="theme" type="button" hidden>' in html

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "br", "path", "use", "rect"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag not in ("path", "use", "rect"):
                assert self.open.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    for named in re.findall(r'aria-labelledby="([^"]+)"', html):
        assert named in ids


def test_texts_are_escaped(plan):
    failed = {plan.runs[0].folder.name: "<script>alert(1)</script>"}
    html = write_page(plan, command="klent compare '<b>'", failed=failed).read_text()
    assert "<script>alert" not in html
    assert "klent compare &#39;&lt;b&gt;&#39;" in html


def test_one_seed_is_told_as_one_seed(tmp_path):
    plan = fake_plan(tmp_path, seeds=1)
    finish(plan, lambda arm, seed: CHANCE[arm])
    results = collect(plan)
    assert {item.verdict for item in results.contrasts["pass@1"]} == {"one seed"}
    assert "One seed is no evidence about the methods" in resolution(results)
    assert "better</span>" not in page(results)


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_a_comparison_under_way_has_a_page_too(tmp_path, done):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: 0.5, only=done)
    html = write_page(plan).read_text()
    assert f"{done} of 9 runs done" in html
    assert "Not done yet, and not counted:" in html


def test_an_arm_that_changed_nothing_is_said_to_be_the_same(tmp_path):
    plan = fake_plan(tmp_path, seeds=1)
    finish(plan, lambda arm, seed: 0.5)
    for name in ("metrics.jsonl", "eval.jsonl"):
        (plan.runs[1].folder / name).write_bytes((plan.runs[0].folder / name).read_bytes())
    results = collect(plan)
    assert results.twins == ["rloo"]
    html = page(results)
    assert "rloo gave exactly the same numbers as grpo" in html
    assert "Its runs are those of grpo, number by number, so there is no difference to estimate." in html


def copies(plan):
    """Every run is the first arm's of its seed, number by number."""
    for run in plan.runs:
        first = next(other for other in plan.runs if other.seed == run.seed)
        for name in ("metrics.jsonl", "eval.jsonl"):
            (run.folder / name).write_bytes((first.folder / name).read_bytes())


def test_nothing_is_said_of_noise_where_every_run_is_the_same(tmp_path):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: 0.5)
    copies(plan)
    results = collect(plan)
    assert resolution(results) == (
        "Every arm's runs are the first arm's, number by number: there is nothing to compare."
    )
    assert "95% interval" not in "".join(
        text
        for m, items in results.contrasts.items()
        for text in (sentence(item, "grpo", m) for item in items)
    )


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_where_all_problems_come_out_alike_the_noise_is_not_nothing(tmp_path, chance):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: chance)
    for run in plan.runs:  # the same scores, and yet not the same runs
        (run.folder / "metrics.jsonl").write_text(
            "".join(
                json.dumps({"step": s, "reward/mean": run.seed + len(run.arm) * s}) + "\n" for s in (1, 2)
            )
        )
    results = collect(plan)
    said = resolution(results)
    assert "0.000" not in said
    assert all(item.high - item.low > 0.05 for items in results.contrasts.values() for item in items)
    assert [cell.spread for cell in table(results).rows[1][2:5]] == ["all equal"] * 3


def test_rewards_that_pass_at_k_cannot_see_are_named(tmp_path):
    """Graded rewards never reach 1, and where nothing is scored all is counted as wrong."""
    plan = fake_plan(tmp_path, seeds=1)
    finish(plan, lambda arm, seed: 0.0)

    def rewrite(run, **change):
        rows = [json.loads(line) | change for line in (run.folder / "eval.jsonl").read_text().splitlines()]
        (run.folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    for run in plan.runs:
        rewrite(run, correct=[[0.0] * 4] * 30, accuracy=0.0, entropy=None)
    results = collect(plan)
    assert "pass@k cannot tell the arms apart" in " ".join(notes(results))
    assert [row[5].value for row in table(results).rows] == [
        "–"
    ] * 4  # no entropy was measured, which is not 0
    rewrite(plan.runs[0], unscorable=1.0)
    assert f"No held-out completion of {plan.runs[0].folder.name} could be scored" in " ".join(
        notes(collect(plan))
    )


def test_a_line_along_the_end_of_its_axis_is_drawn_whole(tmp_path):
    plan = fake_plan(tmp_path)
    finish(plan, lambda arm, seed: 1.0)
    (drawing, *_) = pass_family(collect(plan)).members
    lines = re.findall(r'<g id="[^"]*line2d[^"]*">\s*<path[^>]*stroke-width: 1.8[^>]*>', drawing.svg)
    assert lines
    assert not [line for line in lines if "clip-path" in line]

"""A study: stages that start where others ended, judged alike, resumed, and on one page."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny import tiny_folder

from klent.config.study import read_study
from klent.errors import ConfigError, DataError, RunError
from klent.kit.svg import canvas
from klent.measure.prose import paragraphs, text_nats, texts_of
from klent.models.load import load_policy
from klent.studies.pipeline.page import name_points, write_page
from klent.studies.pipeline.plan import describe, plan_study, state_of
from klent.studies.pipeline.run import run_study

HEAD = """
common: {model: tiny, steps: 1, prompts_per_step: 2, optimizer: {lr: 1e-2}, eval: null}
judge:
  base: "{sft}"
  on:
    sums:
      task: {data: sums.jsonl, heldout: 4}
      reward: r.py:ones
      others: r.py:other
      best_of: [2]
      problems: 4
      samples: 2
      max_tokens: 4
  prose: 2
  texts: {known: {data: known.jsonl}}
  distance: true
stages:
"""
STAGES = """
  dpo: {model: "{sft}", method: dpo, task: {pairs: "{labels}"}}
  labels:
    model: "{sft}"
    task: {data: sums.jsonl, heldout: 4}
    reward: r.py:other
    rollout: {max_tokens: 4}
    label: {pairs: 6}
  sft: {method: sft, task: {data: sums.jsonl, heldout: 4}}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "tiny")
    rows = [{"prompt": f"{i} + 1 = ", "completion": str(i + 1), "answer": str(i + 1)} for i in range(12)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "known.jsonl").write_text('{"text": "2 + 2 = 4"}\n{"text": "3 + 30 = 33"}\n')
    (tmp_path / "r.py").write_text(
        "def ones(completions, **k):\n    return [1.0 for _ in completions]\n"
        "def other(completions, **k):\n    return [float(len(c)) for c in completions]\n"
    )
    (tmp_path / "study.yaml").write_text(HEAD + STAGES)
    return tmp_path / "study.yaml"


def numbers(folder: Path) -> dict[tuple[str, str], float]:
    with open(folder / "study.csv", encoding="utf-8") as lines:
        return {(row["stage"], row["measure"]): float(row["value"]) for row in csv.DictReader(lines)}


def test_stages_run_in_the_order_of_what_they_need_and_are_judged_alike(study: Path) -> None:
    plan = plan_study(study, [], 1, Path("runs"))
    assert [stage.name for stage in plan.study.stages] == ["sft", "labels", "dpo"]
    sft, labels, dpo = plan.blocks[0].runs
    assert Path(dpo.recipe.model) == sft.folder / "final"
    assert Path(dpo.recipe.task.pairs) == labels.folder / "pairs.jsonl"
    console = Console(quiet=True)
    page = run_study(plan, command="klent study study.yaml", console=console)
    found = numbers(plan.folder)
    assert found["sft", "sums/reward"] == 1.0
    assert found["dpo", "sums/other"] > 0
    assert found["dpo", "sums/best_of_2"] == 1.0
    assert found["dpo", "sums/best_of_2_other"] >= found["dpo", "sums/other"]
    assert found["sft", "sums/kl_reverse"] == found["sft", "weights/distance"] == 0.0
    assert min(found["dpo", f"sums/kl_{way}"] for way in ("reverse", "forward")) > 0
    assert found["dpo", "weights/distance"] > 0
    assert "dpo-seed0/report.html" in page.read_text()
    # Again: nothing is trained and nothing is judged anew.
    before = {file: file.stat().st_mtime_ns for file in plan.folder.rglob("*.json*")}
    run_study(plan_study(study, [], 1, Path("runs")), command="", console=console)
    assert {file: file.stat().st_mtime_ns for file in plan.folder.rglob("*.json*")} == before
    assert found["sft", "sums/pass@2"] == 1.0
    # Texts: each alone, from its second token on.
    loaded, nats = load_policy(str(sft.folder / "final")), []
    for text in ("2 + 2 = 4", "3 + 30 = 33"):
        ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        logits = loaded.model(input_ids=ids).logits[0, :-1].float()
        nats.append(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
    assert found["sft", "known/nats"] == pytest.approx(sum(nats) / 2, rel=1e-5)
    assert abs(nats[0] - nats[1]) > 1e-4
    # A stage that is trained again is judged again, and so is what is compared with it.
    shutil.rmtree(sft.folder / "final")
    shutil.copytree("tiny", sft.folder / "final")
    run_study(plan_study(study, [], 1, Path("runs")), command="", console=console)
    again = numbers(plan.folder)
    assert again["sft", "prose/nats"] != found["sft", "prose/nats"]
    assert again["dpo", "weights/distance"] > found["dpo", "weights/distance"]


def test_a_stage_that_fails_takes_those_with_it_that_need_it_and_no_others(study: Path) -> None:
    bad = study.parent / "bad.py"
    bad.write_text("def broken(completions, **k):\n    raise ValueError('no')\n")
    failing = (
        "  rl: {method: grpo, group_size: 2, rollout: {max_tokens: 2}, task: {data: sums.jsonl, heldout: 4},\n"
        '    reward: "bad.py:broken", limits: {unscorable_steps: 1}}\n'
        '  after: {model: "{rl}", method: sft, task: {data: sums.jsonl, heldout: 4}}\n'
    )
    study.write_text(HEAD + failing + STAGES)
    plan = plan_study(study, ["judge.prose=0"], 1, Path("runs"))
    with pytest.raises(RunError, match="2 of 5 runs failed"):
        run_study(plan, command="", console=Console(quiet=True))
    states = {run.arm: state_of(run) for run in plan.blocks[0].runs}
    assert (states["sft"], states["dpo"], states["after"]) == ("done", "done", "new")
    assert ("after", "sums/reward") not in numbers(plan.folder)


def test_a_judge_that_names_a_later_stage_waits_for_it(study: Path) -> None:
    reward = '  reward: {method: reward_model, task: {pairs: "{labels}"}, judge: false}\n'
    text = HEAD.replace("others: r.py:other", 'others: {model: "{reward}"}')
    study.write_text(text + STAGES + reward)
    plan = plan_study(study, ["judge.prose=0"], 1, Path("runs"))
    assert plan.study.judge_needs == ("sft", "reward")
    run_study(plan, command="", console=Console(quiet=True))
    found = numbers(plan.folder)
    assert {stage for stage, measure in found if measure == "sums/reward"} == {"sft", "dpo"}
    assert ("sft", "sums/best_of_2") in found


def test_where_the_base_fails_it_is_said_and_nothing_is_judged(study: Path) -> None:
    (study.parent / "sums.jsonl").write_text('{"prompt": "1 + 1 = "}\n' * 12)  # no completion
    plan = plan_study(
        study,
        [
            "judge.prose=0",
            "stages.other={model: tiny, method: grpo, group_size: 2, reward: "
            "'r.py:ones', rollout: {max_tokens: 2}, task: {gym: chain_sum}}",
        ],
        1,
        Path("runs"),
    )
    with pytest.raises(RunError, match=r"3 of 4 runs failed .*; not judged: other-seed0"):
        run_study(plan, command="", console=Console(quiet=True))
    page = (plan.folder / "study.html").read_text()
    assert "judging other-seed0 failed: sft, which the judge needs, failed" in page


def test_pairs_that_were_labelled_in_another_way_are_refused(study: Path) -> None:
    plan = plan_study(study, ["judge.prose=0"], 1, Path("runs"))
    run_study(plan, command="", console=Console(quiet=True))
    with pytest.raises(
        ConfigError, match=r"labels-seed0 .*label.pairs: 6 there, 5 now; label.flip: 0.0 there, 0.4"
    ):
        plan_study(study, ["stages.labels.label={pairs: 5, flip: 0.4}"], 1, Path("runs"))


@pytest.mark.parametrize("change", ["stages.sft.task.heldout=3", "stages.sft.task.heldout=null"])
def test_a_stage_is_not_judged_on_what_it_trained_on(study: Path, change: str) -> None:
    with pytest.raises(ConfigError, match=r"stage sft trains on .*sums.jsonl, and judge.on.sums holds 4"):
        plan_study(study, [change], 1, Path("runs"))


def test_a_finished_stage_is_not_taken_for_one_of_other_settings(study: Path) -> None:
    plan = plan_study(study, [], 1, Path("runs"))
    (plan.blocks[0].runs[0].folder).mkdir(parents=True)
    from klent.config import dump_recipe

    run = plan.blocks[0].runs[0]
    (run.folder / "config.yaml").write_text(dump_recipe(run.recipe))
    with pytest.raises(ConfigError, match=r"other settings \(steps: 1 there, 2 now\)"):
        plan_study(study, ["stages.sft.steps=2"], 1, Path("runs"))


def test_what_a_study_wrote_is_escaped_on_its_page(study: Path) -> None:
    text = study.read_text().replace("    sums:", '    "<script>":')
    study.write_text(text)
    plan = plan_study(study, [], 1, Path("runs"))
    run_study(plan, command="<b>", console=Console(quiet=True))
    page = write_page(plan, command="<b>", failed={"x": "<i>"}).read_text()
    assert "<h2>&lt;script&gt;</h2>" in page
    assert "&lt;b&gt;" in page
    assert "&lt;i&gt;" in page


REFUSED = {
    "an unknown key": (
        HEAD.replace("common:", "comon:") + STAGES,
        "unknown key `comon`; did you mean `common`?",
    ),
    "no stage": (HEAD, "`stages` is missing"),
    "a stage that needs itself": (HEAD + '  sft: {model: "{sft}", method: sft}\n', "refers to itself"),
    "a ring": (
        HEAD + '  a: {model: "{b}", method: sft}\n  b: {model: "{a}", method: sft}\n',
        "the stages a, b wait for one another",
    ),
    "a name": (HEAD + "  prompt: {method: sft}\n", "a stage cannot be called `prompt`"),
    "a stage that is not there": (
        HEAD + STAGES.replace('"{labels}"', '"{lables}"'),
        "stages.dpo.task.pairs: no stage is called `lables`; did you mean `labels`?",
    ),
    "a judge of a stage that is not there": (
        HEAD.replace('"{sft}"', '"{sfd}"') + STAGES,
        "judge.base: no stage is called `sfd`; did you mean `sft`?",
    ),
    "no judge": ("stages: {a: {method: sft}}\n", "`judge` is missing"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_study_that_cannot_run_says_why_and_where(study: Path, text: str, message: str) -> None:
    study.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_study(study)
    assert message in str(caught.value)
    assert "study.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "judge.on.sums.best_of=[8]",
            "judge.on.sums: best_of 8 needs as many samples, and samples is 2; raise it",
        ),
        ("judge.on.sums.sampels=8", "judge.on.sums.sampels: unknown key; did you mean `samples`?"),
        ("stages.labels.label.flop=0.1", "stages.labels.label.flop: unknown key; did you mean `flip`?"),
    ],
)
def test_a_wrong_value_of_the_judge_is_named_with_its_key(study: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_study(study, [change], 1, Path("runs"))
    assert message in str(caught.value)


def test_a_wrong_key_of_a_stage_is_named_with_its_line(study: Path) -> None:
    study.write_text(HEAD + STAGES.replace("method: sft", "methd: sft"))
    with pytest.raises(ConfigError) as caught:
        plan_study(study, [], 1, Path("runs"))
    assert "stage sft: " in str(caught.value)
    assert "study.yaml:26" in str(caught.value)


def test_the_study_in_the_docs_can_be_planned(study: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()
    study.write_text(page.split("```yaml\n")[1].split("```")[0])
    (study.parent / "gold.py").write_text(
        "def score(completions, **k):\n    return [1.0 for _ in completions]\n"
    )
    (study.parent / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    plan = plan_study(study, [], 1, Path("runs"))
    assert [stage.name for stage in plan.study.stages] == ["labels", "reward", "ppo", "dpo"]


def test_the_plan_says_what_follows_what(study: Path) -> None:
    lines = describe(plan_study(study, [], 2, Path("runs")))
    assert lines[0].startswith("sft: sft on sums.jsonl, 1 step of 2 completions")
    assert lines[1].endswith("6 pairs of answers, after sft")
    assert lines[-1] == "2 seeds, 6 runs: 0 done, 0 started, 6 new"


def test_prose_is_the_same_every_time_and_is_prose() -> None:
    texts = paragraphs(50)
    assert texts == paragraphs(50)
    assert len(set(texts)) == 50
    assert all(len(text) >= 200 and text.endswith(".") for text in texts)


def test_texts_that_cannot_be_read_are_refused_with_their_line(study: Path) -> None:
    Path("bad.jsonl").write_text('{"text": "2 + 2"}\n\n{"txt": "3"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:3: no `text`"):
        texts_of("bad.jsonl")
    with pytest.raises(ConfigError, match="no file gone"):
        texts_of("gone.jsonl")
    with pytest.raises(DataError, match="has only one token"):
        text_nats(load_policy("tiny"), "known", ["2"])
    with pytest.raises(ConfigError, match=r"texts\.prose: another measure has this name"):
        plan_study(study, ["judge.texts.prose.data=known.jsonl"], 1, Path("runs"))


def test_names_of_points_that_lie_together_do_not_cover_one_another() -> None:
    panel = canvas(width=640, height=280)[1][0]
    points = {
        "dpo_0p03": (2.756, 0.399),
        "dpo_0p3": (1.963, 0.390),
        "dpo_1": (1.5, 0.391),
        "ppo_0": (19.7, 0.795),
    }
    for x, y in points.values():
        panel.plot([x], [y], "o")
    boxes = [text.get_window_extent() for text in name_points(panel, points)]
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))

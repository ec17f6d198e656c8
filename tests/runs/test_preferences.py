"""Whole runs on pairs: held-out ones are measured, the reference is asked once for each, what is sampled pairs."""

import json
from pathlib import Path

import pytest
from tiny import tiny_folder

from klent.config import make_recipe
from klent.io.files import read_jsonl
from klent.report import write_report
from klent.runs import language, targets
from klent.runs.console import QuietConsole
from klent.runs.train import train
from klent.training.update import Updater

PAIRS = 12


@pytest.fixture
def world(tmp_path: Path, monkeypatch):
    """A folder with a tiny model, pairs, prompts and a reward; and a cache of its own."""
    tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {i}", "chosen": str(i), "rejected": f"not {i}"} for i in range(PAIRS)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "reward.py").write_text(
        "def r(prompts, completions, **c): return [float(len(set(str(x)))) for x in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLENT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def recipe(**values):
    base = {
        "name": "tiny",
        "model": "model",
        "method": "dpo",
        "task": {"pairs": "pairs.jsonl", "heldout": 3},
        "steps": 4,
        "prompts_per_step": 4,
        "optimizer": {"lr": 1e-3},
        "eval": {"every": 2},
        "checkpoint": {"every": 2},
    }
    return make_recipe(base | values)


@pytest.fixture
def asked(monkeypatch):
    """Rows that a reference was asked for, and the models that were loaded."""
    seen = {"rows": 0, "loaded": 0}
    measure, load = Updater.measure, language.load_policy

    def counted(self, batch, rows, policy=None, **options):
        seen["rows"] += len(rows) if policy is not None else 0
        return measure(self, batch, rows, policy, **options)

    def loading(*args, **options):
        seen["loaded"] += 1
        return load(*args, **options)

    monkeypatch.setattr(Updater, "measure", counted)
    for module in (language, targets):
        monkeypatch.setattr(module, "load_policy", loading)
    return seen


def run(settings, name, **options):
    console = QuietConsole()
    return train(settings, Path(name), command="test", console=console, **options), console


def test_held_out_pairs_are_measured_and_the_reference_is_asked_once_for_each_answer(world, asked):
    done, console = run(recipe(), "first")
    assert asked == {"rows": 2 * PAIRS, "loaded": 2}  # of 4 steps and 3 evaluations, with 50 answers in all
    rows = list(read_jsonl(done / "eval.jsonl"))
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert (rows[0]["preference/accuracy"], rows[0]["problems"]) == (0.5, 3)
    assert abs(rows[0]["preference/margin"]) < 1e-4
    assert rows[-1]["preference/margin"] > 0
    assert console.evals == rows
    first = next(iter(read_jsonl(done / "metrics.jsonl")))
    assert {"preference/accuracy", "preference/margin", "preference/chosen", "preference/rejected"} <= set(
        first
    )
    assert "kl/reference" not in first  # no answer is the policy's own
    page = write_report(done).read_text()
    assert "Held-out accuracy on pairs" in page
    assert 'id="preference"' in page
    assert "adds to the margin" in page

    asked.update(rows=0, loaded=0)
    again, _ = run(
        recipe(seed=1), "second"
    )  # the same data and reference in another order: nothing is loaded
    assert asked == {"rows": 0, "loaded": 1}
    assert (again / "final").is_dir()


def test_a_resumed_run_is_the_same_and_asks_for_nothing_again(world, asked, monkeypatch):
    whole, _ = run(recipe(), "whole")
    monkeypatch.setenv("KLENT_CACHE", str(world / "other"))
    run(recipe(steps=2), "parts")
    asked.update(rows=0)
    parts, _ = run(recipe(), "parts", resume=True)
    assert asked["rows"] < 2 * PAIRS

    def numbers(folder):
        rows = read_jsonl(folder / "metrics.jsonl")
        return [
            {k: v for k, v in row.items() if k.split("/")[0] in ("preference", "objective", "grad")}
            for row in rows
        ]

    assert numbers(parts) == numbers(whole)


def test_online_pairs_are_made_of_what_was_sampled(world):
    (world / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(8)))
    settings = recipe(
        method="online_dpo",
        task={"data": "prompts.jsonl"},
        reward="reward.py:r",
        rollout={"max_tokens": 6},
        steps=2,
        eval=None,
    )
    done, _ = run(settings, "online")
    rows = list(read_jsonl(done / "metrics.jsonl"))
    assert all(0 <= row["preference/tied"] < 1 for row in rows)
    assert all({"preference/margin", "reward/mean", "kl/reference"} <= set(row) for row in rows)
    samples = list(read_jsonl(done / "samples.jsonl"))
    by_prompt = {}
    for sample in samples:
        by_prompt.setdefault((sample["step"], sample["prompt_id"]), []).append(sample)
    for group in by_prompt.values():
        better = [s["reward"] for s in group if s.get("preferred") is True]
        worse = [s["reward"] for s in group if s.get("preferred") is False]
        if better:
            assert (better, worse) == ([max(s["reward"] for s in group)], [min(s["reward"] for s in group)])

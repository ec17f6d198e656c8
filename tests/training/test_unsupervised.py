"""Learning without labels: whole runs, what evaluation adds, prompts ranked, controls measured."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TURN_END, tiny_folder, tiny_model, tiny_tokenizer

from klent.config import make_recipe
from klent.config.model import EarlyStop
from klent.console import QuietConsole
from klent.errors import ConfigError, RunError
from klent.files import read_jsonl
from klent.models import LoadedModel
from klent.rollout.engine import Rollout
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.tasks import DataTask
from klent.tasks.clusters import Equivalence, load_equivalence
from klent.tasks.prompt import Prompt
from klent.training import rank
from klent.training.certainty import kept, logit_skewness, votes, winners
from klent.training.controls import run_controls, summary, write_csv
from klent.training.early_stop import best_row, is_over
from klent.training.rank import rank_prompts
from klent.training.trainer import train

GOLD = "def gold(prompts, completions, **columns):\n    return [float('1' in str(c)) for c in completions]\n"
FIRST = "def first(a, b):\n    return a[:1] == b[:1]\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "gold.py").write_text(GOLD + FIRST)
    rows = [{"prompt": f"say {i}", "number": i} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(method: str, **changes):
    values = {
        "name": "tiny",
        "model": "model",
        "method": method,
        "task": {"data": "prompts.jsonl", "heldout": 4},
        "steps": 3,
        "prompts_per_step": 2,
        "group_size": 4,
        "rollout": {"max_tokens": 6},
        "optimizer": {"lr": 0.01},
        "eval": {"problems": 4, "samples": 2, "reward": "gold.py:gold"},
        "checkpoint": {"every": 0},
    }
    return make_recipe(values | changes)


def run(world: Path, settings, name: str = "run") -> Path:
    return train(settings, world / name, command="klent train tiny", console=QuietConsole())


def test_empo_agrees_more_and_is_measured_by_the_truth(world):
    reward = {"empo": {"same": "gold.py:first"}, "gold.py:gold": 0}
    folder = run(world, recipe("empo", reward=reward, steps=12, group_size=8, optimizer={"lr": 0.03}))
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert {"reward/empo", "reward/gold", "semantic/clusters", "semantic/used"} <= rows[0].keys()
    assert rows[0]["reward/mean"] == pytest.approx(rows[0]["reward/empo"])
    early, late = ([row["semantic/entropy"] for row in part] for part in (rows[:3], rows[-3:]))
    assert sum(late) < sum(early) - 0.5
    before, _ = read_jsonl(folder / "eval.jsonl")
    assert before["reward"] in [k / 8 for k in range(9)]  # the gold reward's mean, not a share of a group


def test_one_prompt_and_no_reward(world):
    task = {"data": "prompts.jsonl", "heldout": 4, "only": [7]}
    settings = recipe("em", task=task, steps=10, eval={
        "problems": 4, "samples": 2, "every": 5, "reward": "gold.py:gold", "same": "text",
        "temperatures": [0, 0.5], "logits": True,
    })  # fmt: skip
    assert (settings.rollout.temperature, settings.reward) == (0.5, None)
    folder = run(world, settings)
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    assert rows[-1]["policy/entropy"] < rows[0]["policy/entropy"] - 0.1
    # the loss is that entropy, of the distribution at temperature 0.5, from the trainer's own forward pass
    assert rows[0]["objective/loss"] == pytest.approx(rows[0]["policy/entropy"], rel=1e-4)
    assert "reward/mean" not in rows[0]
    assert {row["prompt_id"] for row in read_jsonl(folder / "samples.jsonl")} == {"prompts.jsonl:7"}
    measured = list(read_jsonl(folder / "eval.jsonl"))
    assert [row["step"] for row in measured] == [0, 5, 10]
    extra = {"accuracy@0", "accuracy@0.5", "majority", "agreement", "skewness", "skewness/position"}
    assert all(extra <= row.keys() for row in measured)
    assert measured[-1]["agreement"] >= measured[0]["agreement"]


def test_a_reward_that_knows_no_answer_does_not_judge(world):
    with pytest.raises(ConfigError, match=r"eval.reward: is needed: empo knows no answer"):
        recipe("empo", eval={"problems": 4})
    with pytest.raises(ConfigError, match="leaves empo nothing to agree with"):
        recipe("empo", group_size=1, advantage=None)
    assert recipe("empo", eval=None).eval is None
    assert recipe("grpo", reward={"gold.py:gold": 1, "random": 0}).eval


def test_only_these_prompts(world):
    task = DataTask("prompts.jsonl", only=[3, 5], heldout=15)
    assert [task.train(p).columns["number"] for p in range(2)] in ([2, 4], [4, 2])
    assert len(task) == 2
    assert not {2, 4} & {p.columns["number"] for p in task.heldout(15)}


# what evaluation adds


def said(text: str, prompt: str = "?") -> Rollout:
    nothing = torch.zeros(1)
    return Rollout(Prompt("p", prompt), [1], torch.tensor([5]), nothing, nothing, text, "stop")


def test_votes_share_ties_and_ignore_no_answer():
    texts = ["1", "1", "2", "x", "3", "4", "x", "x"]
    correct = [[True, True, False, False], [True, False, False, False]]
    found = votes([said(t) for t in texts], correct, load_equivalence("number"))
    assert found == {"majority": (1 + 0.5) / 2, "agreement": (0.5 + 0.25) / 2}


@pytest.mark.parametrize("linear", [True, False])
def test_skewness_is_that_of_all_logits(monkeypatch, linear):
    monkeypatch.setattr("klent.training.certainty.ROWS", 2)
    if not linear:
        monkeypatch.setattr("klent.training.certainty.head_is_linear", lambda model: False)
    model = tiny_model()
    loaded = LoadedModel(model, tiny_tokenizer(), "tiny", (TURN_END,))
    engine = TransformersEngine(loaded, SamplingOptions(max_tokens=5))
    rollouts = engine.generate([Prompt("a", "one"), Prompt("b", "three")], group_size=2, seed=0)
    kept = []
    for rollout in rollouts:  # every logit held, and the textbook's formula
        ids = torch.tensor([*rollout.prompt_ids, *rollout.tokens.tolist()])[None]
        with torch.no_grad():
            kept.append(model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].double().numpy())
    z = np.concatenate(kept)

    def skew(x):
        return float(((x - x.mean()) ** 3).mean() / x.std() ** 3)

    found = logit_skewness(model, rollouts)
    assert found["skewness"] == pytest.approx(skew(z), rel=1e-4)
    assert found["skewness/position"] == pytest.approx(np.mean([skew(row) for row in z]), rel=1e-4)


def test_winners_are_of_the_largest_cluster_and_of_several_the_first():
    alike = Equivalence(str, lambda a, b: a[0] == b[0])
    answers = [["a", None, "b", "b1"], [None, None], ["c", "d"]]
    assert winners(answers, alike) == ["b", None, "c"]
    assert winners([["a", "b", "b1"]], Equivalence(str)) == ["a"]


def test_kept_leaves_a_sample_out_of_the_vote_it_is_held_against():
    plain = Equivalence(str)
    # "4", "4" and "5" each have a "4" as the first winner of the others; None is an answer that is not kept
    assert kept([["4", "4", "5"]], plain, None) == pytest.approx(2 / 3)
    assert kept([["4", "4", None]], plain, None) == pytest.approx(2 / 3)
    assert kept([["4"]], plain, None) == 0.0
    # later: against the winner before training, a problem without one left out, an unknown winner not kept
    assert kept([["4", "4", None, "5"], ["7", "7", "7", "7"]], plain, ["4", None]) == 0.5
    assert kept([["4", "5"], ["7", "7"]], plain, ["9", "7"]) == 0.5
    alike = Equivalence(str, lambda a, b: a[0] == b[0])
    assert kept([["b1", "b2", "c"]], alike, ["b"]) == pytest.approx(2 / 3)


# early stopping


def rows_of(*values: float, signal: str = "kept") -> list[dict]:
    return [{"step": 2 * place, signal: value} for place, value in enumerate(values)]


def test_the_best_row_is_the_first_that_is_not_beaten_by_the_margin():
    assert best_row(rows_of(0.5, 0.7, 0.7, 0.6), EarlyStop())["step"] == 2
    assert best_row(rows_of(0.5, 0.7, 0.75, 0.6), EarlyStop(margin=0.1))["step"] == 2
    falling = rows_of(2.0, 1.0, 1.5, signal="entropy")
    assert best_row(falling, EarlyStop(signal="entropy"))["step"] == 2


def test_a_run_is_over_after_so_many_evaluations_without_a_better_one():
    two = EarlyStop(patience=2)
    assert [is_over(rows_of(*(0.5, 0.7, 0.6, 0.65)[:n]), two) for n in range(1, 5)] == [False] * 3 + [True]
    assert not is_over(rows_of(0.5, 0.4, 0.6), two)


STOPPING = {"problems": 4, "samples": 4, "every": 1, "reward": "gold.py:gold", "same": "gold.py:first"}


def stopping(**changes):
    stop = {"signal": "entropy", "patience": 2, "margin": 10.0}  # nothing is better by 10 nats: step 0 is best
    return recipe("em", steps=9, eval={**STOPPING, "early_stop": stop}, **changes)


def test_a_run_stops_early_and_ends_with_the_best_weights(world):
    folder = run(world, stopping())
    assert [row["step"] for row in read_jsonl(folder / "eval.jsonl")] == [0, 1, 2]
    assert len(list(read_jsonl(folder / "metrics.jsonl"))) == 2
    final, start = (load_file(world / name / "model.safetensors") for name in ("run/final", "model"))
    assert all(torch.equal(final[name], start[name]) for name in final)
    assert not (folder / "best").exists()
    before, *later = read_jsonl(folder / "eval.jsonl")
    assert len(before["vote"]) == 4
    assert all("vote" not in row and 0 <= row["kept"] <= 1 for row in later)


def test_a_stopped_run_that_is_resumed_stays_stopped(world):
    folder = run(world, stopping())
    logs = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "eval.jsonl")}
    weights = (folder / "final" / "model.safetensors").read_bytes()
    train(stopping(), folder, command="klent train tiny", resume=True, console=QuietConsole())
    assert {name: (folder / name).read_bytes() for name in logs} == logs
    assert (folder / "final" / "model.safetensors").read_bytes() == weights


def test_a_run_that_goes_on_getting_better_is_not_stopped(world):
    stop = {"signal": "entropy", "patience": 1}
    folder = run(world, recipe("em", steps=4, optimizer={"lr": 0.003}, eval={**STOPPING, "early_stop": stop}))
    rows = list(read_jsonl(folder / "eval.jsonl"))
    entropies = [row["entropy"] for row in rows]
    assert entropies == sorted(entropies, reverse=True)
    assert rows[-1]["step"] == 4


def test_what_early_stopping_needs(world):
    with pytest.raises(ConfigError, match=r"eval.early_stop: needs evaluations to look at"):
        recipe("em", eval={**STOPPING, "every": 0, "early_stop": {}})
    with pytest.raises(ConfigError, match="needs to know which answers are the same for its signal, kept"):
        recipe("em", eval={**STOPPING, "same": None, "early_stop": {}})
    with pytest.raises(ConfigError, match="1 leaves agreement, the signal of early_stop, nothing to compare"):
        recipe("em", eval={**STOPPING, "samples": 1, "early_stop": {"signal": "agreement"}})


# klent select


def test_ranked_prompts_are_a_task_and_scores_are_kept(world, monkeypatch):
    options = {"prompts": 12, "samples": 4, "out": world / "ranked.jsonl"}
    rows = rank_prompts(recipe("em"), by="pass_variance", **options)
    values = [row["selection"]["pass_variance"] for row in rows]
    assert values == sorted(values, reverse=True)
    for row in rows:
        share = row["selection"]["accuracy"]
        assert row["selection"]["pass_variance"] == pytest.approx(share * (1 - share))
        assert 0 <= row["selection"]["cluster_variance"] <= 0.75
    task = DataTask("ranked.jsonl", only=[1], heldout=2)
    assert task.train(0).prompt == rows[0]["prompt"]
    assert task.train(0).columns["number"] == rows[0]["number"]

    monkeypatch.setattr(rank, "load_policy", None)  # nothing is sampled again
    again = rank_prompts(recipe("em"), by="entropy", **options)
    values = [row["selection"]["entropy"] for row in again]
    assert values == sorted(values, reverse=True)
    assert {r["selection"]["id"] for r in again} == {r["selection"]["id"] for r in rows}
    chance = rank_prompts(recipe("em"), by="random", **options)
    assert [r["prompt"] for r in chance] not in ([r["prompt"] for r in rows], [r["prompt"] for r in again])


def test_an_interrupted_ranking_goes_on(world):
    options = {"prompts": 12, "samples": 2, "by": "entropy"}
    whole = rank_prompts(recipe("em"), out=world / "a.jsonl", **options)

    def stop(done: int, of: int) -> None:
        if done >= rank.AT_ONCE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank_prompts(recipe("em"), out=world / "b.jsonl", progress=stop, **options)
    kept = len(list(read_jsonl(world / "b.jsonl.scores"))) - 1
    assert kept == rank.AT_ONCE
    seen: list[int] = []
    assert (
        rank_prompts(
            recipe("em"), out=world / "b.jsonl", progress=lambda done, of: seen.append(done), **options
        )
        == whole
    )
    assert seen == [rank.AT_ONCE, 12]
    with pytest.raises(RunError, match=r"holds scores of another setting \(samples differ\)"):
        rank_prompts(recipe("em"), out=world / "b.jsonl", **(options | {"samples": 4}))


def test_what_a_ranking_needs(world):
    out = world / "ranked.jsonl"
    with pytest.raises(ConfigError, match="needs to know right from wrong"):
        rank_prompts(recipe("em", eval=None), prompts=2, samples=2, by="pass_variance", out=out)
    with pytest.raises(ConfigError, match="is none of pass_variance"):
        rank_prompts(recipe("em"), prompts=2, samples=2, by="luck", out=out)


# klent controls


def test_controls_measure_every_arm(world):
    task = {"data": "prompts.jsonl", "heldout": 4, "only": [7]}
    settings = recipe("em", task=task, steps=1, prompts_per_step=1)
    rows = run_controls(settings, runs=world / "runs", seeds=1, say=lambda line: None)
    arms = {row["arm"]: [r["temperature"] for r in rows if r["arm"] == row["arm"]] for row in rows}
    assert arms.pop("before training") == [0.0, 0.3, 0.5, 0.6, 1.0]
    assert list(arms) == ["as written", "right answers", "random rewards", "another prompt"]
    assert all(temperatures == [0.0, 0.5] for temperatures in arms.values())
    configs = {p.parent.name: p.read_text() for p in (world / "runs" / "tiny-controls").glob("*/config.yaml")}
    assert "fn: random" in configs["random_rewards-0"]
    assert "group_advantage" in configs["right_answers-0"]
    assert "entropy_loss" in configs["as_written-0"]
    assert "entropy_loss" not in configs["right_answers-0"]
    assert "- 7\n" not in configs["another_prompt-0"].partition("system:")[0]
    write_csv(world / "controls.csv", rows)
    with open(world / "controls.csv") as file:
        assert len(list(csv.DictReader(file))) == len(rows) == len(summary(rows)) == 13
    said: list[str] = []
    assert run_controls(settings, runs=world / "runs", seeds=1, say=said.append) == rows
    assert sum("is there" in line for line in said) == 4

"""Learning without labels: whole runs, what evaluation adds, prompts ranked, controls measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TURN_END, tiny_folder, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from klent.config import make_recipe
from klent.control.early_stop import best_row, is_over
from klent.errors import ConfigError, RunError
from klent.io.files import read_jsonl
from klent.kit.seeds import derive_seed
from klent.measure.certainty import kept, logit_skewness, votes, winners
from klent.models.load import LoadedModel
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.runs.console import QuietConsole
from klent.runs.train import train
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.studies import rank
from klent.studies.controls import (
    arms,
    changed,
    chosen,
    difference,
    read_csv,
    run_controls,
    summary,
    write_csv,
)
from klent.studies.rank import rank_prompts
from klent.tasks import load_task
from klent.tasks.clusters import Equivalence, load_equivalence

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
    said = {"same": "gold.py:first", "truncated": True}  # the tiny model hardly ever stops by itself
    reward = {"empo": said, "gold.py:gold": 0}
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


def test_the_released_code_is_off_by_one_and_goes_on_behind_the_end(world):
    """By hand: entropies at the prompt's length and behind, as the released code slices them."""
    task = {"data": "prompts.jsonl", "heldout": 4, "only": [7]}
    settings = recipe(
        "em_released",
        task=task,
        steps=2,
        prompts_per_step=1,
        eval=None,
        group_size=8,
        rollout={"max_tokens": 30},
    )
    folder = run(world, settings)
    metrics = list(read_jsonl(folder / "metrics.jsonl"))
    samples = [row for row in read_jsonl(folder / "samples.jsonl") if row["step"] == 1]
    model, tokenizer = AutoModelForCausalLM.from_pretrained("model"), AutoTokenizer.from_pretrained("model")
    loaded = LoadedModel(model.eval(), tokenizer, "model", (TURN_END,))
    engine = TransformersEngine(loaded, SamplingOptions(max_tokens=30, temperature=0.5))
    seed = derive_seed(0, "rollout", 1)
    prompt = load_task({"data": "prompts.jsonl", "only": [7], "heldout": 4}, seed=0, heldout=0).train(0)
    rollouts = engine.generate([prompt], group_size=8, seed=seed)
    assert {row["completion"] for row in samples} <= {r.text for r in rollouts}  # what was trained on
    longest = max(len(r.tokens) for r in rollouts)
    assert {len(r.tokens) for r in rollouts} != {longest}  # some end early, or nothing is behind an end
    entropies = []
    for rollout in rollouts:
        filled = [*rollout.tokens.tolist(), *[tokenizer.pad_token_id] * (longest - len(rollout.tokens))]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([rollout.prompt_ids + filled])).logits[0]
        p = (logits[len(rollout.prompt_ids) :] / 0.5).softmax(dim=-1)
        entropies.append(-(p * p.log()).sum(dim=-1))
    expected = torch.cat(entropies)
    assert len(expected) == 8 * longest
    assert metrics[0]["objective/loss"] == pytest.approx(float(expected.mean()), rel=1e-4)
    # what is measured of the completions stays theirs
    own = torch.cat([r.entropy for r in rollouts])
    assert metrics[0]["policy/entropy"] == pytest.approx(float(own.mean()), rel=1e-4)
    assert metrics[0]["policy/logp_mismatch"] < 1e-4


def test_the_released_positions_are_for_entropy_alone(world):
    with pytest.raises(ConfigError, match=r"update.released_code: uses positions where nothing was sampled"):
        recipe("grpo", reward="gold.py:gold", update={"released_code": True})


def test_a_reward_that_knows_no_answer_does_not_judge(world):
    with pytest.raises(ConfigError, match=r"eval.reward: is missing: empo knows no answer"):
        recipe("empo", eval={"problems": 4})
    with pytest.raises(ConfigError, match="leaves empo nothing to agree with"):
        recipe("empo", group_size=1, advantage=None)
    assert recipe("empo", eval=None).eval is None
    assert recipe("grpo", reward={"gold.py:gold": 1, "random": 0}).eval


def test_only_these_prompts(world):
    task = load_task({"data": "prompts.jsonl", "only": [3, 5], "heldout": 15}, seed=0, heldout=0)
    assert [task.train(p).columns["number"] for p in range(2)] in ([2, 4], [4, 2])
    assert len(task) == 2
    assert not {2, 4} & {p.columns["number"] for p in task.heldout(15)}


# what evaluation adds


def said(text: str, prompt: str = "?") -> Episode:
    nothing = torch.zeros(1)
    return Episode(Prompt("p", prompt), [1], torch.tensor([5]), text, "stop", logp=nothing, entropy=nothing)


def test_votes_share_ties_and_ignore_no_answer():
    texts = ["1", "1", "2", "x", "3", "4", "x", "x"]
    correct = [[True, True, False, False], [True, False, False, False]]
    found = votes([said(t) for t in texts], correct, load_equivalence("number"), len(correct[0]))
    assert found == {"majority": (1 + 0.5) / 2, "agreement": (0.5 + 0.25) / 2}


@pytest.mark.parametrize("linear", [True, False])
def test_skewness_is_that_of_all_logits(monkeypatch, linear):
    monkeypatch.setattr("klent.measure.certainty.ROWS", 2)
    if not linear:
        monkeypatch.setattr("klent.measure.certainty.head_is_linear", lambda model: False)
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
    assert best_row(rows_of(0.5, 0.7, 0.7, 0.6), "kept")["step"] == 2
    assert best_row(rows_of(0.5, 0.7, 0.75, 0.6), "kept", 0.1)["step"] == 2
    assert best_row(rows_of(2.0, 1.0, 1.5, signal="entropy"), "entropy")["step"] == 2


def test_a_run_is_over_after_so_many_evaluations_without_a_better_one():
    values = (0.5, 0.7, 0.6, 0.65)
    over = [is_over(rows_of(*values[:n]), "kept", 0.0, patience=2) for n in range(1, 5)]
    assert over == [False, False, False, True]
    assert not is_over(rows_of(0.5, 0.4, 0.6), "kept", 0.0, patience=2)


STOPPING = {"problems": 4, "samples": 4, "every": 1, "reward": "gold.py:gold", "same": "gold.py:first"}


def stopping(**changes):
    stop = {"signal": "entropy", "patience": 2, "margin": 10.0}  # no step is better by so much: 0 is best
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


def test_early_stopping_by_the_loss_is_for_a_data_set_and_by_answers_for_a_reward(world):
    by_loss = {"every": 1, "early_stop": {"signal": "loss"}}
    with pytest.raises(ConfigError, match=r"early_stop.signal: loss is that of held-out completions"):
        recipe("em", eval={**STOPPING, **by_loss})
    sft = {"rollout": {"engine": "dataset"}, "group_size": 1}
    assert recipe("sft", eval=by_loss, **sft).eval.early_stop.signal == "loss"
    with pytest.raises(ConfigError, match=r"early_stop.signal: entropy is measured on answers that a reward"):
        recipe("sft", eval={"every": 1, "early_stop": {"signal": "entropy"}}, **sft)


def test_what_early_stopping_needs(world):
    with pytest.raises(ConfigError, match=r"eval.early_stop: needs evaluations during training"):
        recipe("em", eval={**STOPPING, "every": 0, "early_stop": {}})
    with pytest.raises(ConfigError, match="needs to know which answers are equal for its signal, kept"):
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
    task = load_task({"data": "ranked.jsonl", "only": [1], "heldout": 2}, seed=0, heldout=0)
    assert task.train(0).prompt == rows[0]["prompt"]
    assert task.train(0).columns["number"] == rows[0]["number"]

    monkeypatch.setattr(rank, "load_on_device", None)  # nothing is sampled again
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
    with pytest.raises(ConfigError, match="needs a reward that gives 1 to right answers"):
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
    assert list(arms) == [
        "as written", "right answers", "random rewards", "another prompt",
        "RL", "this, then RL", "RL, then this",
    ]  # fmt: skip
    assert all(temperatures == [0.0, 0.5, 1.0] for temperatures in arms.values())
    configs = {p.parent.name: p.read_text() for p in (world / "runs" / "tiny-controls").glob("*/config.yaml")}
    assert "fn: random" in configs["random_rewards-0"]
    assert "group_advantage" in configs["right_answers-0"]
    assert "entropy_loss" in configs["as_written-0"]
    assert "entropy_loss" not in configs["right_answers-0"]
    assert "- 7\n" not in configs["another_prompt-0"].partition("system:")[0]
    assert "only: null" in configs["RL-0"]
    assert "temperature: 1.0" in configs["RL-0"]
    assert "as_written-0/final" in configs["this_then_RL-0"]
    assert "RL-0/final" in configs["RL_then_this-0"]
    assert "entropy_loss" in configs["RL_then_this-0"]
    measured = {path.parent.name for path in (world / "runs" / "tiny-controls").glob("*/eval.jsonl")}
    assert measured == {"as_written-0"}
    write_csv(world / "controls.csv", rows)
    again = read_csv(world / "controls.csv")
    assert len(again) == len(rows) == len(summary(rows)) == 5 + 7 * 3
    assert summary(again) == summary(rows)
    said: list[str] = []
    assert run_controls(settings, runs=world / "runs", seeds=1, say=said.append) == rows
    assert sum("already complete" in line for line in said) == 7
    other = recipe("em", task=task, steps=2, prompts_per_step=1)
    with pytest.raises(RunError, match=r"as_written-0 is a run of another recipe; move it away"):
        run_controls(other, runs=world / "runs", seeds=1, say=said.append)


def test_the_stage_with_right_answers_may_be_a_recipe_of_its_own(world):
    rl = recipe("rloo", name="other", steps=2, reward="gold.py:gold", model="elsewhere")
    task = load_task(recipe("em").task, seed=0, heldout=4)
    found = arms(recipe("em"), task, rl)
    assert (found["RL"].recipe.steps, found["RL"].recipe.method) == (2, "rloo")
    assert (found["RL"].recipe.model, found["RL"].recipe.eval) == ("model", recipe("em").eval)
    assert (found["this, then RL"].recipe, found["this, then RL"].after) == (found["RL"].recipe, "as written")
    assert found["RL, then this"].recipe.loss == {"entropy_loss": {"coef": 1.0}}
    assert "RL" not in arms(recipe("empo", reward={"empo": {"same": "number"}}), task)


def test_some_arms_are_trained_with_those_they_begin_with(world):
    task = load_task(recipe("em").task, seed=0, heldout=4)
    found = arms(recipe("em"), task)
    assert list(chosen(found, ["RL, then this", "random rewards"])) == [
        "random rewards",
        "RL",
        "RL, then this",
    ]
    assert list(chosen(found, ["as written"])) == ["as written"]
    assert chosen(found, None) == found
    with pytest.raises(ConfigError, match="has no arm 'gold'; arms are: 'as written'"):
        chosen(found, ["gold"])


def test_no_arm_trains_on_what_is_measured(world):
    for row in range(1, 21):  # also where the only row is one that would have been held out
        task = {"data": "prompts.jsonl", "heldout": 4, "only": [row]}
        settings = recipe("em", task=task, prompts_per_step=1)
        judge = load_task(settings.task, seed=settings.seed, heldout=settings.eval.problems)
        judged = {prompt.id for prompt in judge.heldout(4)}
        assert len(judged) in (3, 4)
        for name, arm in arms(settings, judge).items():
            own = changed(arm.recipe, {"seed": 5})
            there = load_task(own.task, seed=own.seed, heldout=own.eval.problems)
            seen = {there.train(place).id for place in range(len(there))}
            assert not seen & judged, (name, row)
            assert len(seen) == (1 if own.task.only else 16), name


def measured(arm: str, seed: int | str, solved: list[float]) -> dict:
    row = dict.fromkeys(("pass@k", "majority", "agreement", "entropy", "length"), 0.5)
    share = sum(solved) / len(solved)
    return row | {
        "arm": arm, "seed": seed, "temperature": 1.0, "accuracy": share, "low": 0.0, "high": 1.0,
        "problems": len(solved), "samples": 2, "solved": solved,
    }  # fmt: skip


def test_a_change_is_paired_by_problem():
    rows = [
        measured("before training", "", [0.0, 0.5, 1.0, 0.5]),
        measured("as written", 0, [0.5, 1.0, 1.0, 0.5]),
        measured("as written", 1, [0.5, 0.0, 1.0, 0.5]),
    ]
    before, after = summary(rows)
    # means over the seeds: 0.5, 0.5, 1, 0.5; less before: 0.5, 0, 0, 0; standard error 0.25 / 2
    assert after["change"] == f"+0.125 ± {1.96 * 0.125:.3f}"
    assert after["accuracy"] == "0.625"
    assert after["over seeds"] == "0.500 to 0.750"
    assert after["interval"] == before["interval"].replace("0.15", "0.22").replace("0.85", "0.91")
    assert (before["change"], before["over seeds"], before["± over seeds"]) == ("–", "–", "–")
    # the seeds' changes are 0.25 and 0: standard error 0.125, and t(1) = 12.706
    assert after["± over seeds"] == f"{12.7062 * 0.125:.3f}"
    assert summary(rows[:2])[1]["± over seeds"] == "–"  # one seed says nothing about others
    alike = [*rows[:2], {**rows[1], "seed": 1}]
    assert summary(alike)[1]["± over seeds"] == "equal"  # and not a margin of 0


def test_a_difference_is_paired_by_seed_too():
    found = difference([[1.0, 0.0], [1.0, 1.0]], [[0.5, 0.0], [0.5, 0.5]])
    assert found.by_seed == [0.25, 0.5]
    assert found.mean == 0.375
    assert found.over_problems == pytest.approx(1.96 * 0.125)  # problems differ by 0.5 and 0.25 on average
    assert found.over_seeds == pytest.approx(12.7062 * 0.125, rel=1e-4)
    with pytest.raises(ValueError, match="shorter"):
        difference([[1.0]] * 3, [[0.5]] * 2)

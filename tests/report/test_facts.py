"""Sentences, each against rows small enough to compute by hand; and silence where there is nothing."""

import math
from pathlib import Path
from typing import Any

import pytest

from klent.kit.statistics import ends
from klent.report.facts import facts, gain, problem_pairs
from klent.report.fit import fit_run
from klent.report.headline import headline
from klent.report.read import RunData


def run_of(columns: dict[str, list[Any]], evals: list[dict[str, Any]] | None = None, **more: Any) -> RunData:
    count = max((len(column) for column in columns.values()), default=0)
    rows = [{"step": i + 1} | {name: column[i] for name, column in columns.items()} for i in range(count)]
    return RunData(Path("r"), rows=rows, evals=evals or [], **more)


def said(run: RunData) -> dict[str, str]:
    return {fact.lead: fact.text for fact in facts(run, fit_run(run))}


def cautions(run: RunData) -> set[str]:
    return {fact.lead for fact in facts(run, fit_run(run)) if fact.caution}


def evaluation(step: int, correct: list[list[float]], **more: Any) -> dict[str, Any]:
    flat = [value for problem in correct for value in problem]
    row = {"step": step, "split": "heldout", "accuracy": sum(flat) / len(flat), "correct": correct}
    return row | {"problems": len(correct), "samples": len(correct[0])} | more


def test_nothing_measured_is_nothing_said() -> None:
    assert facts(run_of({}), None) == []
    assert facts(run_of({"optimizer/lr": [1.0, 1.0]}), None) == []


def test_entropy_spent_and_when() -> None:
    run = run_of({"policy/entropy": [2.0, 1.0, 0.6, 0.5]})
    assert said(run)["Entropy"] == (
        "Entropy fell from 2.00 to 0.50 nats per token: 75% of it is spent. Half of the fall was over by "
        "step 2. As equally likely choices per token: 7.4 before, 1.6 after."
    )
    assert cautions(run) == set()
    assert cautions(run_of({"policy/entropy": [2.0, 0.05]})) == {"Entropy"}
    assert said(run_of({"policy/entropy": [1.0, 1.5]}))["Entropy"] == (
        "Entropy rose from 1.00 to 1.50 nats per token."
    )


def test_reward_names_its_window() -> None:
    assert said(run_of({"reward/mean": [0.2, 0.9]}))["Reward"] == (
        "From the first step to the last, the mean reward went from 0.20 to 0.90."
    )
    long = run_of({"reward/mean": [0.0, 0.2] * 5 + [0.8, 1.0] * 5})
    assert said(long)["Reward"] == (
        "From the first 2 steps to the last 2, the mean reward went from 0.10 to 0.90."
    )


def test_theory_counts_signs_and_adds_up() -> None:
    run = run_of(
        {
            "policy/entropy_delta": [-0.5, -0.2, 0.1, None],
            "policy/entropy_delta_predicted": [-0.6, 0.1, 0.2, 1.0],
        }
    )
    assert said(run)["Theory"] == (
        "The covariance theorem predicted the sign of the entropy change in 2 of 3 steps. In total it "
        "predicted −0.300 nats per token; −0.600 were measured."
    )


def test_distance_names_the_largest_step() -> None:
    run = run_of({"kl/update": [0.01, 0.05, 0.03], "kl/reference": [0.0, 0.1, 0.25]})
    assert said(run)["Distance"] == (
        "An update moved the policy by 0.030 nats per token on average, by 0.050 at most (step 2); at the "
        "end it was 0.25 nats per token from the reference."
    )


def test_accuracy_over_the_same_problems() -> None:
    before = evaluation(0, [[0.0], [0.0], [0.0], [1.0]])
    after = evaluation(9, [[1.0], [1.0], [1.0], [1.0]])
    run = run_of({}, [before, after])
    # changes 1, 1, 1, 0: mean 0.75, variance 0.25, half width 1.96 * sqrt(0.25 / 4) = 0.49
    assert gain(run) == pytest.approx((0.75, 0.49, 4))
    assert said(run)["Accuracy"] == (
        "Held-out accuracy went from 0.25 to 1.00. Over the same 4 problems the change is +0.75 ± 0.49 "
        "(95% interval)."
    )
    assert cautions(run) == set()
    worse = run_of({}, [after | {"step": 0}, before | {"step": 9}])
    assert "the change is −0.75 ± 0.49" in said(worse)["Accuracy"]
    assert cautions(worse) == {"Accuracy"}


def graded(step: int, rewards: list[list[float | None]], **more: Any) -> dict[str, Any]:
    known = [value for problem in rewards for value in problem if value is not None]
    row = {"step": step, "split": "heldout", "reward": sum(known) / len(known), "rewards": rewards}
    return row | {"problems": len(rewards), "samples": len(rewards[0])} | more


def test_graded_rewards_are_told_by_their_mean() -> None:
    before = graded(0, [[0.0, 0.0], [0.0, 0.0]], accuracy=0.0)
    after = graded(9, [[0.2, None], [0.6, 0.4]], reward_low=0.1, reward_high=0.7)
    run = run_of({}, [before, after])
    assert problem_pairs(run) == [(0.0, 0.2), (0.0, 0.5)]
    assert said(run)["Held-out reward"].startswith(
        "Held-out mean reward went from 0.00 to 0.40. Over the same 2"
    )
    assert "Accuracy" not in said(run)
    tile = headline(run)["stats"][0]
    assert tuple(tile) == ("Held-out mean reward", "0.00", "0.40", "95%: 0.10 to 0.70; 2 problems × 2")


def test_the_first_tile_has_every_temperature() -> None:
    rows = [
        evaluation(step, [[0.0], [1.0]], **{"accuracy@0": greedy}) for step, greedy in ((0, 0.44), (9, 0.75))
    ]
    run = run_of({}, rows)
    assert headline(run)["stats"][0].sub.endswith("; greedily: 0.44 → 0.75")
    assert "went from 0.50 to 0.50 (greedily from 0.44 to 0.75)." in said(run)["Accuracy"]


def test_what_could_not_be_scored_is_said_in_the_first_tile() -> None:
    unscored = {"step": 9, "split": "heldout", "problems": 2, "samples": 1, "reward": None, "unscorable": 1.0}
    for rows in ([unscored], [evaluation(0, [[0.0], [1.0]]), unscored]):
        tile = headline(run_of({}, rows))["stats"][0]
        assert tuple(tile) == ("Held-out reward", "", "not scored", "no completion of 2 problems could be")


def test_a_change_that_may_be_chance_is_called_so() -> None:
    run = run_of({}, [evaluation(0, [[0.0], [1.0], [0.0]]), evaluation(9, [[1.0], [0.0], [1.0]])])
    assert said(run)["Accuracy"].endswith("(95% interval): it may be chance.")
    assert cautions(run) == {"Accuracy"}


def test_evaluations_of_other_problems_are_not_paired() -> None:
    run = run_of({}, [evaluation(0, [[0.0], [1.0]]), evaluation(9, [[1.0], [1.0], [1.0]])])
    assert problem_pairs(run) == []
    assert said(run)["Accuracy"] == "Held-out accuracy went from 0.50 to 1.00."
    broken = run_of(
        {}, [evaluation(0, [[0.0]]) | {"correct": "lost"}, evaluation(9, [[1.0]]) | {"correct": [1.0]}]
    )
    assert problem_pairs(broken) == []


def test_trouble_is_named_with_its_steps() -> None:
    run = run_of(
        {
            "reward/unscorable": [0.0, 0.5, 0.25],
            "update/skipped": [0, 1, 1],
            "completion/truncated": [0.1, 0.2, 0.3],
            "group/zero_variance": [0.9, 0.9, 1.0],
        }
    )
    text = said(run)
    assert text["Unscorable"] == (
        "Some completions could not be scored in 2 of 3 steps, at most 50% of them (step 2). "
        "They were left out."
    )
    assert text["Skipped"] == (
        "2 updates were skipped because the loss or the gradient was not finite: step 2, 3."
    )
    assert text["Length"] == "10% of the completions hit the token limit at the start, 30% at the end."
    assert text["Groups"] == (
        "93% of the groups gave no gradient: all their completions got the same reward; at the end it was "
        "100%."
    )
    assert cautions(run) == {"Unscorable", "Skipped", "Length", "Groups"}


def test_a_healthy_run_is_not_troubled() -> None:
    zeros = {"reward/unscorable": [0.0, 0.0], "update/skipped": [0, 0], "completion/truncated": [0.0, 0.01]}
    assert said(run_of(zeros | {"group/zero_variance": [0.0, 0.0]})) == {}


@pytest.mark.parametrize(("count", "each"), [(1, 1), (9, 1), (20, 2), (1000, 20)])
def test_ends_are_a_tenth_of_at_most_twenty_steps(count: int, each: int) -> None:
    values = [float(i) for i in range(count)]
    found = ends(values)
    assert found == (sum(values[:each]) / each, sum(values[-each:]) / each, each)


def test_ends_of_nothing() -> None:
    assert ends([]).window == 0
    assert math.isnan(ends([]).start)


def test_headline_of_a_finished_run() -> None:
    run = run_of(
        {"policy/entropy": [2.0, 0.5], "kl/reference": [0.1, 0.42], "time/step": [10.0, 20.0]},
        [evaluation(0, [[0.0], [1.0]]), evaluation(2, [[1.0], [1.0]], low=0.34, high=1.0)],
        config={"name": "mine", "model": "m", "method": "rloo", "task": {"data": "p.jsonl"}, "seed": 3},
        run={"finished": "2026", "wall_seconds": 75.0, "command": "klent train r.yaml seed=3"},
    )
    top = headline(run)
    assert (top["name"], top["command"], top["notes"]) == ("mine", "klent train r.yaml seed=3", [])
    assert "".join(text for text, _ in top["lede"]) == "m on p.jsonl by rloo. 2 steps, seed 3."
    assert [tuple(stat) for stat in top["stats"]] == [
        ("Held-out accuracy", "0.50", "1.00", "95%: 0.34 to 1.00; 2 problems × 1"),
        ("Policy entropy", "2.00", "0.50", "nats per token, 75% spent"),
        ("KL from reference", "", "0.42", "nats per token, at the last step"),
        ("Wall time", "", "1 min 15 s", "15 s per step"),
    ]


def test_headline_of_a_run_cut_short_without_evaluation() -> None:
    run = run_of(
        {"reward/mean": [0.1, 0.3], "kl/update": [0.01, 0.03], "time/step": [4.0, 5.0]},
        config={"steps": 10},
        run={"finished": None, "wall_seconds": 0.0},
    )
    top = headline(run)
    assert top["notes"] == ["This run has not finished: it was at step 2 of 10 when this page was made."]
    run.run["finished"] = "2026"
    assert headline(run)["notes"] == ["This run was stopped early, after step 2 of 10."]
    assert headline(run_of({}, config={"steps": 10}))["notes"] == [
        "This run has not finished: it was at step 0 of 10 when this page was made."
    ]
    assert [tuple(stat) for stat in top["stats"]] == [
        ("Mean reward", "0.10", "0.30", "on the training prompts"),
        ("KL of an update", "", "0.020", "nats per token, mean over all steps"),
        ("Time in steps", "", "9.0 s", "4.5 s per step"),
    ]

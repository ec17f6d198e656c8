"""Sentences, each against rows small enough to compute by hand; and silence where there is nothing."""

import math
from pathlib import Path
from typing import Any

import pytest

from klent.kit.statistics import ends
from klent.kit.tables import Table
from klent.measure.findings import diagnose
from klent.report import entropy, figures
from klent.report.facts import facts, gain, problem_pairs
from klent.report.fit import fit_run
from klent.report.headline import headline
from klent.report.read import RunData, is_idle


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


def test_theory_counts_the_exact_effects_beside_the_covariance() -> None:
    run = run_of(
        {
            "policy/entropy_delta": [-0.5, -0.2, 0.1],
            "policy/entropy_delta_predicted": [-0.6, 0.1, 0.2],
            "policy/entropy_delta_exact": [-0.4, -0.1, -0.1],
        }
    )
    assert said(run)["Theory"].endswith(
        "−0.600 were measured. Each token's exact effect, with one step that all share, had the sign in 2 of 3 "
        "steps and predicted −0.600."
    )
    assert "exact" not in said(run_of({"policy/entropy_delta": [-0.5, 0.1]})).get("Theory", "")


def test_steps_without_an_update_are_neither_hits_nor_misses_of_the_theorem() -> None:
    """Of 268 steps 212 moved nothing; a skipped one leaves rounding, whose sign is nobody's."""
    measured = [0.0] * 211 + [3e-8] + [-0.1] * 54 + [0.1] * 2
    run = run_of(
        {
            "policy/entropy_delta": measured,
            "policy/entropy_delta_predicted": [0.0] * 211 + [3e-8] + [-0.2] * 56,
            "kl/update": [0.0] * 211 + [1e-13] + [0.02] * 56,
            "update/skipped": [0] * 211 + [1] + [0] * 56,
            "objective/zero_fraction": [1.0] * 212 + [0.5] * 56,
        }
    )
    text = said(run)
    assert text["Theory"].startswith(
        "The covariance theorem predicted the sign of the entropy change in 54 of 56 steps with an update "
        "(212 had none). In total"
    )
    assert text["No update"] == "In 211 of 268 steps no token had a coefficient, so nothing was updated."
    assert text["Distance"] == (
        "An update moved the policy by 0.020 nats per token on average, by 0.020 at most (step 213)."
    )
    (tile,) = [s for s in headline(run)["stats"] if s.label == "KL of an update"]
    assert (tile.value, tile.sub) == ("0.020", "nats per token, mean over 56 updates")
    assert entropy.theorem(run).caption.startswith("n = 56 steps with an update, each measured")


def test_an_update_that_a_foreign_log_gives_no_divergence_is_an_update() -> None:
    """verl's ppo_kl is 0 in every step that takes a single optimizer step."""
    rows = [{"step": 1, "kl/update": 0.0, "grad/norm": 0.3}, {"step": 2, "kl/update": 0.0, "grad/norm": 0.0}]
    assert [is_idle(row) for row in rows] == [False, True]


def test_where_nothing_was_scored_no_reward_is_spoken_of() -> None:
    nothing = {"reward/mean": None, "reward/std": None, "reward/unscorable": 1.0, "group/zero_variance": 1.0}
    still = {"policy/entropy": 1.2, "policy/entropy_delta": 0.0, "policy/entropy_delta_predicted": 0.0}
    still |= {"kl/update": 0.0, "objective/zero_fraction": 1.0, "objective/loss": 0.0, "grad/norm": 0.0}
    run = run_of({name: [value] * 8 for name, value in (nothing | still).items()})
    assert said(run) == {
        "Entropy": "Entropy stayed at 1.20 nats per token.",
        "No update": "In 8 of 8 steps no token had a coefficient, so nothing was updated.",
        "Unscorable": "No completion was scored, so no reward was learned from.",
    }
    assert [stat.label for stat in headline(run)["stats"]] == ["Policy entropy"]
    assert figures.loss(run) is None
    assert "fewer than two scored" in figures.reward(run).caption


def test_equal_rewards_are_said_to_give_no_gradient_only_where_they_give_none() -> None:
    """REINFORCE has no baseline, and a KL term pushes whatever the rewards are."""
    rewards = {"reward/mean": [1.0] * 8, "group/zero_variance": [0.9] * 8}
    without = run_of(rewards | {"objective/zero_fraction": [0.88] * 8})
    pushed = run_of(rewards | {"objective/zero_fraction": [0.0] * 8})
    beginning = "In 90% of the groups all completions got the same reward"
    assert said(without)["Groups"] == beginning + ": no gradient."
    assert said(pushed)["Groups"] == beginning + "; their tokens had a gradient all the same."
    for run, has in ((without, False), (pushed, True)):
        (found,) = diagnose(Table(run.rows))
        assert ("give no gradient" in found.evidence) is not has
        assert ("give no gradient" in figures.reward(run).caption) is not has


def test_the_last_value_is_the_ends_only_where_the_end_has_one() -> None:
    run = run_of({"kl/reference": [0.1, 0.2, None]})
    assert said(run)["Distance"] == "At step 2 it was 0.20 nats per token from the reference."
    assert headline(run)["stats"][0].sub == "nats per token, at step 2"


def test_the_kl_of_completions_is_told_where_it_is_held() -> None:
    run = run_of({"kl/update": [0.01, 0.05, 0.03], "kl/sequence": [0.2, None, 1.25]})
    assert said(run)["Distance"].endswith("; whole completions were last 1.2 nats from the reference.")
    (tile,) = [stat for stat in headline(run)["stats"] if stat.label == "KL from reference"]
    assert (tile.value, tile.sub) == ("1.2", "nats per completion, last measured")
    assert [key.metric for key in figures.kl(run).keys] == ["kl/update", "kl/sequence"]


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


def test_an_evaluation_that_could_not_be_scored_measured_nothing() -> None:
    failed = [evaluation(step, [[0.0]] * 5, low=0.0, high=0.434, unscorable=1.0) for step in (0, 9)]
    run = run_of({}, failed)
    assert said(run) == {
        "Held out": "No held-out completion could be scored at step 0, 9, so nothing was measured there."
    }
    assert [stat.value for stat in headline(run)["stats"]] == ["not scored"]
    assert figures.accuracy(run) is None
    assert problem_pairs(run) == []


def test_problems_that_all_came_out_alike_leave_a_margin() -> None:
    """28 problems, none changed: ((0 + 1) / 30 - 0) / 30 is the variance of the mean."""
    same = run_of({}, [evaluation(step, [[1.0]] * 28) for step in (0, 9)])
    assert gain(same) == pytest.approx((0.0, 1.96 / 30, 28), abs=1e-4)


def test_a_log_of_every_tenth_step_is_not_of_as_many_steps() -> None:
    rows = [{"step": step, "time/step": 9.0, "reward/mean": 0.5} for step in range(10, 210, 10)]
    run = RunData(Path("r"), rows=rows, run={"source": "TRL's trainer state"})
    top = headline(run)
    assert "".join(text for text, _ in top["lede"]) == "From TRL's trainer state. 20 steps of 200 logged."
    assert [tuple(stat) for stat in top["stats"]][-1] == (
        "Time of a step",
        "",
        "9.0 s",
        "mean over 20 logged steps",
    )
    assert figures.reward(run).caption.startswith("n = 20 steps of 200 logged")


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
        "In 93% of the groups all completions got the same reward, or fewer than two were scored (100% at the "
        "end): no gradient."
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

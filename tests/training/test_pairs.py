"""Losses of pairs in a step: the two of a pair stay together, and how rows are packed or cut changes nothing."""

from dataclasses import fields

import pytest
import torch
from helpers_training import batch, gradient, pairs, updater

from klent.control.organ import StepRecord
from klent.control.pairing import BestWorst
from klent.objectives import dpo
from klent.training.objective import Objective
from klent.training.pairs import PairTerm, is_right, rows_of_pairs, with_pairs
from klent.training.term import Term

LOSSES = {
    "dpo": {"dpo": {"beta": 0.5}},
    "ipo": {"dpo": {"beta": 0.5, "form": "ipo"}},
    "cdpo": {"dpo": {"beta": 0.5, "label_noise": 0.2}},
    "simpo": {"simpo": {"beta": 2.0, "margin": 1.0}},
    "orpo": {"orpo": {"coef": 0.5}},
    "dpo beside imitation": {"dpo": {"beta": 0.5}, "orpo": {"coef": 0.0}},
}


def step(loss: str, **options: object):
    return updater(Objective(LOSSES[loss], None, None), reduce={"over": "pairs"}, **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_behind_a_shared_prompt_and_small_micro_batches_have_the_same_gradient(loss):
    whole = step(loss, shared=False)
    expected = gradient(whole, pairs())
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-4
    for options in (
        {"shared": True},
        {"tokens_per_microbatch": 1},
        {"shared": True, "tokens_per_microbatch": 60},
    ):
        found = gradient(step(loss, **options), pairs())
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * largest)


def test_no_micro_batch_cuts_a_pair():
    made = pairs()
    parts = list(step("dpo", tokens_per_microbatch=1).policy.microbatches(made, range(len(made))))
    assert sorted(row for part in parts for row in part) == list(range(8))
    assert all(
        sorted(made.group[part].tolist()) == sorted([*set(made.group[part].tolist())] * 2) for part in parts
    )
    assert len(parts) == 4


def test_a_step_reports_the_scores_that_the_loss_compares():
    made = pairs()
    trained = step("dpo")
    result = trained.run(made, seed=0)
    logp = result.before.logp - made.streams.logp_ref
    score = torch.where(made.mask, logp, 0.0).double().sum(dim=1)
    better, worse = score[0::2], score[1::2]
    means = {name: total / count for name, (total, count) in result.sums.items()}
    assert means["preference/chosen"] == pytest.approx(float(better.mean()), abs=1e-4)
    assert means["preference/rejected"] == pytest.approx(float(worse.mean()), abs=1e-4)
    assert means["preference/margin"] == pytest.approx(float((better - worse).mean()), abs=1e-4)
    assert means["preference/accuracy"] == float((better > worse).double().mean())
    assert result.loss == pytest.approx(
        float(-torch.nn.functional.logsigmoid(0.5 * (better - worse)).mean()), abs=1e-5
    )


def test_a_loss_that_reads_lengths_compares_means():
    made = pairs()
    term = step("simpo").objective.terms[0]
    assert isinstance(term, PairTerm)
    logp = torch.where(made.mask, -2.0, 0.0)
    assert term.scores(made.streams.with_(logp=logp)).tolist() == [-2.0] * 8
    sums = (
        step("dpo").objective.terms[0].scores(made.streams.with_(logp=logp, logp_ref=torch.zeros_like(logp)))
    )
    assert sums.tolist() == (-2.0 * made.mask.sum(dim=1)).tolist()


def test_what_differs_by_rounding_is_a_tie():
    assert is_right(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.000001, 0.5, 2.0])).tolist() == [
        0.5,
        1.0,
        0.0,
    ]


def test_of_sampled_answers_the_best_and_the_worst_are_a_pair_and_the_others_are_left_out():
    nan = float("nan")
    made = batch([1.0, 0.0, 0.5, 0.0, 1.0, 1.0, 1.0, nan, nan, 0.25, nan, 2.0])
    organ = BestWorst()
    organ.after_rollout(made)
    rows = made.trained.any(dim=1).nonzero()[:, 0].tolist()
    assert rows == [0, 1, 9, 11]  # of the second prompt all answers are equal, and one is unscorable
    better, worse = rows_of_pairs(made.streams.rows(rows))
    assert ([rows[i] for i in better], [rows[i] for i in worse]) == ([0, 11], [1, 9])
    made.streams.logp_ref = torch.zeros(made.mask.shape)
    made.unit = made.group
    trained = step("dpo")
    assert trained.objective.active_rows(made) == rows
    result = trained.run(made, seed=0)
    assert result.before.known.nonzero()[:, 0].tolist() == rows
    score = result.before.logp.double().sum(dim=1)
    gaps = torch.stack([score[0] - score[1], score[11] - score[9]])
    assert result.loss == pytest.approx(float(-torch.nn.functional.logsigmoid(0.5 * gaps).mean()), rel=1e-4)
    assert organ.after_update(StepRecord(1, made, None, result)) == {"preference/tied": pytest.approx(1 / 3)}


def test_a_term_of_pairs_keeps_what_the_term_says():
    term = Term("mine", dpo, {"beta": 0.5}, frozenset({"logp"}), False, True, {"a": "b"})
    (made,) = with_pairs([term])
    assert isinstance(made, PairTerm)
    assert all(getattr(made, one.name) == getattr(term, one.name) for one in fields(Term))


def test_a_step_without_any_pair_leaves_the_weights_alone():
    made = batch([1.0] * 12)
    made.unit = made.group
    BestWorst().after_rollout(made)
    made.streams.logp_ref = torch.zeros(made.mask.shape)
    trained = step("dpo")
    before = [p.detach().clone() for p in trained.policy.parameters()]
    result = trained.run(made, seed=0)
    assert (result.loss, result.grad_norm, result.skipped) == (0.0, 0.0, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, trained.policy.parameters(), strict=True))

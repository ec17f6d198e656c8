"""One optimizer step, however it is cut: the same gradient, the same counts, no work for idle completions."""

import math

import pytest
import torch
from helpers_training import GRPO, batch, gradient, updater
from tiny import tiny_model

from klent.models.load import recompute_activations
from klent.policies.causal_lm.policy import CausalPolicy
from klent.training.objective import Objective

REDUCTIONS = [{"over": "tokens"}, {"over": "sequences"}, {"over": "constant", "denominator": 9}]


def close(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    assert left
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=lambda r: r["over"])
@pytest.mark.parametrize("budget", [40, 80])
@pytest.mark.parametrize(("shared", "joined"), [(True, 0), (True, 80), (False, 0)])
def test_any_cut_into_microbatches_gives_the_gradient_of_one_batch(reduce, budget, shared, joined):
    whole = gradient(updater(reduce=reduce), batch())
    cut = gradient(
        updater(reduce=reduce, tokens_per_microbatch=budget, shared=shared, joined=joined), batch()
    )
    close(whole, cut)


@pytest.mark.parametrize("reduce", REDUCTIONS, ids=lambda r: r["over"])
def test_the_gradient_is_that_of_the_formula(reduce):
    """On-policy GRPO is sum_t A_t grad logp_t over the denominator, written out here sequence by sequence."""
    rows = batch()
    found = gradient(updater(reduce=reduce), rows)
    model = tiny_model()
    total = torch.zeros(())
    sequences, tokens = len(rows.episodes), rows.tokens
    for b, rollout in enumerate(rows.episodes):
        group = rows.reward[b // 4 * 4 : b // 4 * 4 + 4].double()
        advantage = float((rows.reward[b] - group.mean()) / group.std())
        ids = torch.tensor([rollout.prompt_ids + rollout.tokens.tolist()])
        logp = model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        own = logp.gather(1, rollout.tokens[:, None]).sum()
        share = {
            "tokens": 1 / tokens,
            "sequences": 1 / (sequences * len(rollout.tokens)),
            "constant": 1 / (sequences * 9),
        }[reduce["over"]]
        total = total - advantage * own * share
    total.backward()
    expected = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-3)


def test_completions_without_a_coefficient_are_not_computed_and_change_nothing():
    rewards = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, float("nan"), 0.5, 0.0, 0.0, 0.0, 0.0]
    rows = batch(rewards)
    step = updater()
    step.objective.estimate_advantage(rows)
    assert step.objective.active_rows(rows) == [4, 5]  # the rest: equal, unscorable, or at the mean
    found = gradient(updater(), batch(rewards))

    class Everything(Objective):
        def active_rows(self, batch):
            return list(range(len(batch)))

    close(found, gradient(updater(Everything(*GRPO)), batch(rewards)))


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_critic_learns_nothing_from_what_could_not_be_scored(clip):
    rows = batch([1.0, 0.0, float("nan"), 0.5, 1.0, 1.0, 0.0, float("nan"), 0.0, 0.0, 0.0, 2.0])
    objective = Objective({"value": {"coef": 1.0, "clip": clip}}, {"gae": {}}, None)
    rows.streams.value_old = torch.full(rows.mask.shape, 0.5)
    objective.estimate_advantage(rows)
    known = ~rows.reward.isnan()
    assert objective.active_rows(rows) == known.nonzero()[:, 0].tolist()
    value = torch.full(rows.mask.shape, 3.0, requires_grad=True)  # it has moved away since
    outcome = objective.token_loss(rows.streams.with_(value=value, mask=rows.mask))
    outcome.loss.sum().backward()
    assert not value.grad[~known].any()
    assert (value.grad[known] != 0).equal(rows.mask[known])
    assert outcome.metrics["value/error"][1] == rows.mask[known].sum()


def test_terms_that_always_push_keep_every_completion():
    rows = batch([0.0] * 12)
    for loss in ({"entropy_loss": {"coef": 0.1}}, {"kl_in_loss": {"coef": 0.1}}):
        objective = Objective(GRPO[0] | loss, GRPO[1], None)
        rows.streams.logp_ref = rows.streams.logp_gen.clone()
        objective.estimate_advantage(rows)
        assert objective.active_rows(rows) == list(range(12))


def test_an_idle_batch_takes_no_step():
    step = updater()
    rows = batch([1.0] * 12)
    step.objective.estimate_advantage(rows)
    before = [p.clone() for p in step.parameters]
    result = step.run(rows, seed=0)
    assert (result.loss, result.grad_norm, result.tokens) == (0.0, 0.0, 0)
    assert all(torch.equal(p, q) for p, q in zip(before, step.parameters, strict=True))


def test_coefficients_are_what_the_table_of_methods_says():
    rows = batch()
    step = updater(lr=0.0)
    step.objective.estimate_advantage(rows)
    result = step.run(rows, seed=0)
    torch.testing.assert_close(result.coefficient, rows.streams.advantage, atol=1e-5, rtol=1e-5)


def test_several_passes_clip_against_the_policy_at_the_start_of_the_step():
    rows = batch()
    step = updater(lr=0.5, epochs=3, minibatches=2)
    rows.streams.logp_old = step.measure(rows, range(12)).logp
    step.objective.estimate_advantage(rows)
    result = step.run(rows, seed=0)
    assert result.steps == 6
    ratio, count = result.sums["ratio"]
    assert ratio / count != 1.0
    assert result.sums["clip_high"][0] + result.sums["clip_low"][0] > 0


def test_minibatches_keep_prompts_whole_and_use_every_completion_once_a_pass():
    step = updater(epochs=2, minibatches=2)
    plan = list(step._plan(batch(), seed=0))
    assert len(plan) == 4
    for first, second in (plan[:2], plan[2:]):
        assert sorted(first + second) == list(range(12))
        for part in (first, second):
            assert sorted(part) == [
                b for prompt in sorted({b // 4 for b in part}) for b in range(4 * prompt, 4 * prompt + 4)
            ]


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone_and_is_counted():
    step = updater(lr=1.0)
    rows = batch()
    step.objective.estimate_advantage(rows)
    rows.streams.advantage = torch.where(rows.mask, float("inf"), 0.0)
    before = [p.clone() for p in step.parameters]
    result = step.run(rows, seed=0)
    assert (result.skipped, result.steps) == (1, 1)
    assert all(torch.equal(p, q) for p, q in zip(before, step.parameters, strict=True))


def test_clipping_scales_the_step():
    rows = batch()
    moved = []
    for limit in (float("inf"), 1e-3):
        step = updater(lr=1.0, max_grad_norm=limit)
        rows = batch()
        step.objective.estimate_advantage(rows)
        before = [p.clone() for p in step.parameters]
        result = step.run(rows, seed=0)
        total = sum(
            float(((p - q) ** 2).sum().detach()) for p, q in zip(before, step.parameters, strict=True)
        )
        moved.append((math.sqrt(total), result.grad_norm))
    assert moved[0][1] == pytest.approx(moved[1][1], rel=1e-5)
    assert moved[0][0] == pytest.approx(moved[0][1], rel=1e-3)
    assert moved[1][0] == pytest.approx(1e-3, rel=1e-2)


def test_gradient_checkpointing_gives_the_same_gradient():
    model = tiny_model()
    recompute_activations(model)
    close(gradient(updater(), batch()), gradient(updater(model=model), batch()))


def test_rewards_paid_by_the_token_join_the_advantage_as_reward_to_go():
    rows = batch()
    policy = CausalPolicy(tiny_model(1), temperature=1.0)
    step = updater()
    rows.streams.logp_old = step.measure(rows, range(12)).logp
    rows.streams.logp_ref = step.measure(rows, range(12), policy).logp
    objective = Objective(
        {"reinforce": {}}, {"group_advantage": {"scale": "none"}}, {"kl_in_reward": {"coef": 0.3}}
    )
    objective.estimate_advantage(rows)
    delta = rows.streams.logp_old - rows.streams.logp_ref
    for b, rollout in enumerate(rows.episodes):
        group = rows.reward[b // 4 * 4 : b // 4 * 4 + 4]
        count = len(rollout.tokens)
        for t in range(count):
            expected = float(rows.reward[b] - group.mean() - 0.3 * delta[b, t:count].sum())
            assert float(rows.streams.advantage[b, t]) == pytest.approx(expected, abs=1e-5)

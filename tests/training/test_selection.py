"""Choices of tokens: one for each optimizer step, whatever the step is cut into."""

import pytest
import torch
from helpers_training import GRPO, batch, gradient, updater

from klent import objectives as O
from klent.streams.batch import Batch
from klent.training.objective import Objective
from klent.training.term import Term
from klent.training.update import Updater

CLIP_COV = {"clip_cov": {"clip_low": 1.0, "clip_high": 1.0}}
CASES = {
    "clip_cov": (CLIP_COV, {"dropped": {"clip_cov_tokens": {"fraction": 0.1, "low": 0.0}}}),
    "kl_cov": ({"kl_cov": {"coef": 0.5}}, {"penalised": {"kl_cov_tokens": {"fraction": 0.2}}}),
    "kl_cov_true": (
        {"kl_cov": {"coef": 0.5, "penalty": "kl"}},
        {"penalised": {"kl_cov_tokens": {"fraction": 0.2}}},
    ),
    "kl_cov_exact": (
        {"kl_cov": {"coef": 0.5}},
        {"penalised": {"kl_cov_exact_tokens": {"fraction": 0.2}}},
    ),
    "clip_cov_exact": (
        CLIP_COV,
        {"dropped": {"clip_cov_exact_tokens": {"fraction": 0.1, "pool": 0.3}}},
    ),
    "top20": (GRPO[0], {"mask": {"high_entropy_tokens": {"fraction": 0.2}}}),
    "bottom80": (GRPO[0], {"mask": {"low_entropy_tokens": {"fraction": 0.8}}}),
    "random20": (GRPO[0], {"mask": {"random_tokens": {"fraction": 0.2}}}),
}
GROUP = GRPO[1]


def make(case: str, kind: type[Updater] = Updater, **options: object) -> Updater:
    loss, select = CASES[case]
    made = updater(Objective(loss, GROUP, None, select), **options)
    made.__class__ = kind
    return made


def moved() -> Batch:
    """A step's completions, sampled from a policy a little off the one that is trained."""
    rows = batch()
    noise = torch.randn(rows.mask.shape, generator=torch.Generator().manual_seed(3))
    rows.streams.logp_old = torch.where(rows.mask, rows.streams.logp_gen - 0.1 * noise, 0.0)
    return rows


def same_however_cut(case: str, kind: type[Updater] = Updater, **options: object) -> None:
    """The law: choice and gradient of an optimizer step do not depend on its micro-batches."""
    whole = gradient(make(case, kind, **options), moved())
    assert any(value.abs().max() > 1e-4 for value in whole.values())
    for budget, shared in ((80, False), (30, True), (1, False)):
        step = make(case, kind, tokens_per_microbatch=budget, shared=shared, **options)
        cut = gradient(step, moved())
        assert cut.keys() == whole.keys()
        for name in whole:
            assert torch.allclose(whole[name], cut[name], atol=2e-6, rtol=1e-4), (name, budget, shared)


class PerMicrobatch(Updater):
    """The mistake of released code: each micro-batch chooses among its own tokens."""

    def _accumulate(self, batch, rows, *arguments, **options):
        batch = self.objective.selection.choose(batch, rows, batch.at_sampling, seed=0)
        return super()._accumulate(batch, rows, *arguments, **options)


@pytest.mark.parametrize("reduce", [{"over": "tokens"}, {"over": "sequences"}], ids=lambda r: r["over"])
@pytest.mark.parametrize("case", CASES)
def test_any_cut_into_microbatches_chooses_the_same_and_gives_the_same_gradient(case, reduce):
    same_however_cut(case, reduce=reduce)


@pytest.mark.parametrize("case", CASES)
def test_choosing_in_each_microbatch_would_be_noticed(case):
    with pytest.raises(AssertionError):
        same_however_cut(case, PerMicrobatch, reduce={"over": "tokens"})


@pytest.mark.parametrize("case", CASES)
def test_the_choice_is_the_selectors_over_the_whole_step(case):
    rows = batch()
    step = make(case, lr=0.0, tokens_per_microbatch=1)
    step.objective.estimate_advantage(rows)
    result = step.run(rows, seed=0)
    ((stream, choice),) = CASES[case][1].items()
    ((name, settings),) = choice.items()
    arguments = {
        "kl_cov_tokens": (rows.streams.logp_gen, rows.streams.advantage, rows.mask),
        "kl_cov_exact_tokens": (
            rows.streams.logp_gen,
            rows.streams.entropy_gen,
            rows.streams.collision_gen,
            rows.streams.collision_logp_gen,
            rows.streams.advantage,
            rows.mask,
        ),
        "high_entropy_tokens": (rows.streams.entropy_gen, rows.mask),
        "low_entropy_tokens": (rows.streams.entropy_gen, rows.mask),
    }
    chosen = result.chosen[stream]
    assert chosen.any()
    assert not chosen[~rows.mask].any()
    if name in arguments:
        assert torch.equal(chosen, getattr(O, name)(*arguments[name], **settings))
    elif name == "random_tokens":
        assert int(chosen.sum()) == int(O.random_tokens(rows.mask, fraction=settings["fraction"]).sum())


@pytest.mark.parametrize("case", ["clip_cov", "random20"])
def test_a_draw_follows_the_seed_and_differs_between_optimizer_steps(case):
    def chosen(seed: int, **options: object) -> torch.Tensor:
        rows = batch()
        step = make(case, lr=0.0, **options)
        step.objective.estimate_advantage(rows)
        (choice,) = step.run(rows, seed=seed).chosen.values()
        return choice

    assert torch.equal(chosen(0), chosen(0))
    assert not torch.equal(chosen(0), chosen(1))


def watched(step: Updater, rows: Batch) -> tuple[list, list]:
    """What an update measured (rows) and chose from (rows and log-probs), optimizer step by step."""
    measured, chosen = [], []
    measure, choose = step.measure, step.objective.selection.choose

    def see_measure(batch, rows, *more):
        measured.append(list(rows))
        return measure(batch, rows, *more)

    def see_choose(batch, rows, policy, *, seed):
        chosen.append((rows, None if policy is None else policy.logp[rows].clone(), seed))
        return choose(batch, rows, policy, seed=seed)

    step.measure, step.objective.selection.choose = see_measure, see_choose
    step.objective.estimate_advantage(rows)
    step.run(rows, seed=0)
    return measured, chosen


def test_the_first_optimizer_step_chooses_by_the_sampler_and_later_ones_by_the_policy():
    rows = batch()
    measured, chosen = watched(make("kl_cov", lr=0.5, epochs=2, minibatches=2), rows)
    assert measured == [rows_of for rows_of, _, _ in chosen[1:]]  # no forward pass for the first
    assert len({seed for _, _, seed in chosen}) == 4
    first_rows, first_logp, _ = chosen[0]
    assert torch.equal(first_logp, rows.streams.logp_gen[first_rows])
    for rows_of, logp, _ in chosen[1:]:
        assert (logp - rows.streams.logp_gen[rows_of])[rows.mask[rows_of]].abs().max() > 1e-3


def test_what_is_drawn_at_random_needs_no_forward_pass():
    assert watched(make("random20", epochs=2), batch())[0] == []


def test_a_data_sets_tokens_are_chosen_by_the_policy_that_is_trained():
    rows = batch()
    rows.streams.logp_gen = rows.streams.entropy_gen = None
    measured, _ = watched(make("top20"), rows)
    assert measured == [list(range(12))]


def test_several_optimizer_steps_end_alike_however_cut():
    ends = []
    for budget in (4096, 30):
        rows = batch()
        step = make("clip_cov", lr=0.05, epochs=2, minibatches=3, tokens_per_microbatch=budget)
        rows.streams.logp_old = step.measure(rows, range(12)).logp
        step.objective.estimate_advantage(rows)
        result = step.run(rows, seed=0)
        ends.append((result.chosen["dropped"], [p.detach().clone() for p in step.parameters]))
    assert torch.equal(ends[0][0], ends[1][0])
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("over", ["tokens", "sequences"])
def test_the_average_is_over_the_selected_tokens_or_over_all_as_the_recipe_says(over):
    rows = batch()
    step = make("top20", lr=0.0)
    step.objective.estimate_advantage(rows)
    chosen = step.run(rows, seed=0).chosen["mask"]
    coefficients = {}
    for count in ("selected", "all"):
        step = make("top20", lr=0.0, reduce={"over": over, "count": count})
        coefficients[count] = step.run(rows, seed=0).coefficient / rows.tokens
    advantage = torch.where(chosen, rows.streams.advantage, 0.0)
    for count, counted in (("selected", chosen), ("all", rows.mask)):
        if over == "tokens":
            expected = advantage / counted.sum()
        else:
            expected = advantage / counted.sum(1, keepdim=True).clamp(min=1) / counted.any(1).sum()
        torch.testing.assert_close(coefficients[count], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(  # selected is what a recipe gets that does not say
        make("top20", lr=0.0, reduce={"over": over}).run(rows, seed=0).coefficient / rows.tokens,
        coefficients["selected"],
    )


def test_completions_without_a_selected_token_are_not_computed():
    rows = batch()
    rows.streams.entropy_gen = torch.zeros(rows.mask.shape)
    rows.streams.entropy_gen[5] = 1.0
    loss = {"mask": {"high_entropy_tokens": {"fraction": 1e-9}}}
    step = updater(Objective(GRPO[0], GROUP, None, loss), shared=False)
    step.objective.estimate_advantage(rows)
    result = step.run(rows, seed=0)
    assert result.before.known.nonzero().flatten().tolist() == [5]
    assert result.tokens == step.policy.evaluate(rows, [5]).tokens


def test_dropped_tokens_get_no_push_and_the_others_all_of_theirs():
    rows = batch()
    step = make("clip_cov", lr=0.0)
    step.objective.estimate_advantage(rows)
    result = step.run(rows, seed=0)
    expected = torch.where(result.chosen["dropped"], 0.0, rows.streams.advantage)
    torch.testing.assert_close(result.coefficient, expected, atol=1e-5, rtol=1e-5)


# Weights


def steered(**options: object) -> Updater:
    """GRPO with STEER's weights, of a range wide enough to see."""
    weigh = {"ppo_clip": {"steer_weight": {"lowest": 0.2}}}
    return updater(Objective(GRPO[0], GROUP, None, None, weigh=weigh), **options)


def test_weights_are_those_of_the_whole_step_however_it_is_cut():
    whole = gradient(steered(), batch())
    for budget, shared in ((80, False), (1, False)):
        cut = gradient(steered(tokens_per_microbatch=budget, shared=shared), batch())
        for name in whole:
            torch.testing.assert_close(whole[name], cut[name], atol=2e-6, rtol=1e-4)


def test_a_weight_multiplies_its_terms_loss_and_no_other():
    rows = batch()
    plain = updater(lr=0.0)
    plain.objective.estimate_advantage(rows)
    unweighed = plain.run(rows, seed=0).coefficient
    gen = rows.streams
    numbers = (gen.logp_gen, gen.entropy_gen, gen.collision_gen, gen.collision_logp_gen, gen.advantage)
    weight = O.steer_weight(*numbers, rows.mask, lowest=0.2)
    assert float(weight[rows.mask].min()) == pytest.approx(0.2)
    result = steered(lr=0.0).run(rows, seed=0)
    torch.testing.assert_close(result.coefficient, unweighed * weight, atol=1e-5, rtol=1e-4)
    total, count = result.sums["weight"]
    assert total / count == pytest.approx(float(weight[rows.mask].mean()), rel=1e-4)
    loss = {**GRPO[0], "entropy_loss": {"coef": -0.1}}
    both = updater(Objective(loss, GROUP, None, weigh={"ppo_clip": {"steer_weight": {}}}), lr=0.0)
    streams = rows.streams.with_(logp=gen.logp_gen, entropy=gen.entropy_gen, logp_old=gen.logp_gen)
    halved = both.objective.token_loss(streams.weighing({"ppo_clip": torch.full(rows.mask.shape, 0.5)}))
    alone = [term.loss(streams).loss for term in both.objective.terms]
    torch.testing.assert_close(halved.loss, 0.5 * alone[0] + alone[1])


def test_weights_are_of_the_chosen_tokens_where_some_are():
    rows = batch()
    select = {"mask": {"high_entropy_tokens": {"fraction": 0.2}}}
    step = updater(
        Objective(GRPO[0], GROUP, None, select, weigh={"ppo_clip": {"steer_weight": {"lowest": 0.2}}}), lr=0.0
    )
    step.objective.estimate_advantage(rows)
    chosen = step.objective.selection.choose(rows, list(range(12)), rows.at_sampling, seed=0)
    weight = chosen.streams.weights["ppo_clip"]
    assert torch.equal(weight > 0, chosen.streams.choices["mask"])
    assert float(weight[weight > 0].min()) == pytest.approx(0.2)  # the largest effect among the chosen


def test_what_the_sampler_does_not_give_is_measured():
    """The sampler's sums at the first optimizer step, the policy's own before later ones."""
    rows = batch()
    assert watched(steered(lr=0.5, epochs=2), rows)[0] == [list(range(12))]
    rows = batch()
    rows.streams.collision_gen = None
    assert watched(steered(), rows)[0] == [list(range(12))]


def test_the_sampler_and_the_policy_agree_on_the_sums():
    rows = batch()
    measured = steered().measure(rows, range(12))
    sampled = rows.at_sampling
    for name in ("logp", "entropy", "collision", "collision_logp"):
        torch.testing.assert_close(getattr(measured, name), getattr(sampled, name), atol=2e-5, rtol=1e-4)
    assert updater().measure(rows, range(12)).collision is None


def test_a_term_of_the_loss_may_read_the_sums():
    def effect_times_logp(logp, entropy, collision, collision_logp, advantage, mask):
        effect = O.entropy_effect(logp, entropy, collision, collision_logp, advantage, mask)
        return O.TokenLoss(effect * torch.where(mask, logp, 0.0), {})

    names = ("logp", "entropy", "collision", "collision_logp", "advantage", "mask")
    objective = Objective({}, GROUP, None)
    objective.terms = [Term("effect", effect_times_logp, {}, frozenset(names))]
    rows = batch()
    step = updater(objective, lr=0.0)
    assert {"collision", "collision_logp"} <= step.needs.also
    objective.estimate_advantage(rows)
    gen = rows.streams
    numbers = (gen.logp_gen, gen.entropy_gen, gen.collision_gen, gen.collision_logp_gen, gen.advantage)
    expected = -O.entropy_effect(*numbers, rows.mask)
    torch.testing.assert_close(step.run(rows, seed=0).coefficient, expected, atol=1e-4, rtol=1e-3)

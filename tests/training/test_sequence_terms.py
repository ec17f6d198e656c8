"""Terms about whole sequences in the update: their numbers, their cut into micro-batches, their weights."""

import pytest
import torch
from helpers_training import batch, updater
from tiny import tiny_model
from torch import Tensor

from klent.config import make_recipe
from klent.errors import ConfigError
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.teacher import Teacher
from klent.streams.batch import Batch
from klent.training.objective import Objective
from klent.training.reduction import Reduction
from klent.training.update import Updater

COEF = 0.7


def held(**options: object) -> Updater:
    """An updater whose only term is the sequence KL to another tiny model."""
    step = updater(Objective({"sequence_kl": {"coef": COEF}}, None, None), **options)
    reference = CausalPolicy(tiny_model(1), temperature=1.0, packing=Packing(False))
    step.policy.teachers = {"kl": Teacher(reference)}
    step.reduction = Reduction("constant", 1.0)
    step.learning_rate = lambda number: 0.0
    return step


def whole(rows: Batch) -> Batch:
    rows.unit = rows.group
    return rows


def gradients(step: Updater) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in step.policy.named_parameters() if p.grad is not None}


def off_policy(rows: Batch) -> Batch:
    """The same completions as if another policy had sampled them, a group as a unit."""
    shift = 0.3 * torch.arange(rows.mask.numel()).view(rows.mask.shape).sin()
    rows.streams.logp_gen = rows.streams.logp_gen + torch.where(rows.mask, shift, 0.0)
    return whole(rows)


def plain(rows: Batch) -> dict[str, Tensor]:
    """The same from all logits, a completion at a time, with the leave-one-out baseline written out."""
    model, other = tiny_model(0), tiny_model(1)
    logp, kl = [], []
    for episode in rows.episodes:
        ids = torch.tensor([episode.prompt_ids + episode.tokens.tolist()])
        logits = (m(input_ids=ids).logits[0, len(episode.prompt_ids) - 1 : -1] for m in (model, other))
        p, q = (x.log_softmax(-1) for x in logits)
        logp.append(p.gather(1, episode.tokens[:, None])[:, 0])
        kl.append((p.exp() * (p - q.detach())).sum(-1))
    group, total = rows.group.tolist(), torch.zeros(())
    for i in range(len(rows)):
        log_ratio = logp[i].detach() - rows.streams.logp_gen[i, : len(logp[i])]
        weight = torch.cat([torch.zeros(1), log_ratio.cumsum(0)]).exp()
        peers = [j for j in range(len(rows)) if j != i and group[j] == group[i]]
        base, pay = [], []
        for t in range(len(kl[i])):
            ahead = [float(kl[j][t + 1 :].detach().sum()) for j in peers if len(kl[j]) > t]
            base.append(sum(ahead) / len(ahead) if ahead else 0.0)
            pay.append(weight[t] * kl[i][t].detach() - (weight[t + 1] - weight[t]) * base[t])
        for t in range(len(kl[i])):
            cost = sum(pay[t + 1 :]) - weight[t + 1] * base[t]
            total = total + weight[t] * kl[i][t] + cost * logp[i][t]
    (COEF * total / len(rows)).backward()
    return {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("shared", "joined"), [(True, 0), (True, 4096), (False, 0)])
@pytest.mark.parametrize("reference", [Packing(False), Packing(True), Packing(True, joined=4096)])
def test_the_gradient_is_that_of_all_logits(shared: bool, joined: int, reference: Packing) -> None:
    """Whatever the layout of either: the actions of the two models stand in one order."""
    step = held(shared=shared, joined=joined)
    step.policy.teachers["kl"].policy.packing = reference
    step.policy.takes_blocks = bool(joined)
    result = step.run(off_policy(batch()), seed=0)
    expected, found = plain(off_policy(batch())), gradients(step)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=2e-3)
    total, count = result.sums["sequence_kl"]
    assert count == len(batch())
    assert total > 0


@pytest.mark.parametrize("budget", [40, 100_000])
def test_micro_batches_do_not_matter_because_groups_stay_whole(budget: int) -> None:
    one, other = held(tokens_per_microbatch=1), held(tokens_per_microbatch=budget)
    rows = whole(batch())
    for step in (one, other):
        step.run(rows, seed=0)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(gradients(other)[name], gradient, atol=1e-6, rtol=1e-3)
    cut = one.policy.microbatches(rows, range(len(rows)))
    assert len(cut) > 1
    assert all(rows.group[part].unique().numel() * 4 <= len(part) for part in cut)


def test_importance_weights_leave_it_alone() -> None:
    rows = whole(batch())
    step, weighted = held(), held()
    step.run(rows, seed=0)
    weighted.run(
        rows.with_streams(rows.streams.with_(importance_weight=torch.zeros(rows.mask.shape))), seed=0
    )
    for name, gradient in gradients(step).items():
        torch.testing.assert_close(gradients(weighted)[name], gradient)


RECIPE = {
    "name": "held",
    "model": "smollm2-135m",
    "method": "grpo",
    "task": {"gym": "chain_sum"},
    "reward": "last_number",
    "steps": 1,
}


def test_a_selector_that_takes_tokens_out_of_the_sequences_is_refused() -> None:
    values = {**RECIPE, "loss": {"sequence_kl": {"coef": 0.1}}}
    make_recipe(values)
    with pytest.raises(ConfigError, match="sequence_kl is about"):
        make_recipe({**values, "select": {"mask": {"random_tokens": {"fraction": 0.5}}}})


def test_its_baseline_is_no_setting() -> None:
    with pytest.raises(ConfigError, match="has no such setting"):
        make_recipe({**RECIPE, "loss": {"sequence_kl": {"coef": 0.1, "baseline": 1.0}}})

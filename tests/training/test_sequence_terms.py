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


def plain(rows: Batch) -> dict[str, Tensor]:
    """The same from all logits, a completion at a time, with the leave-one-out baseline written out."""
    model, other = tiny_model(0), tiny_model(1)
    logp, kl = [], []
    for episode in rows.episodes:
        ids = torch.tensor([episode.prompt_ids + episode.tokens.tolist()])
        p, q = (
            m(input_ids=ids).logits[0, len(episode.prompt_ids) - 1 : -1].log_softmax(-1)
            for m in (model, other)
        )
        logp.append(p.gather(1, episode.tokens[:, None])[:, 0])
        kl.append((p.exp() * (p - q.detach())).sum(-1))
    weights = [
        torch.cat([torch.ones(1), (a.detach() - g.logp).cumsum(0).exp()])
        for a, g in zip(logp, rows.episodes, strict=True)
    ]
    pay = [w[:-1] * k.detach() for w, k in zip(weights, kl, strict=True)]
    future = [x.flip(0).cumsum(0).flip(0) - x for x in pay]
    total = torch.zeros(())
    group = rows.group.tolist()
    for i in range(len(rows)):
        for t in range(len(kl[i])):
            peers = [j for j in range(len(rows)) if j != i and group[j] == group[i] and len(kl[j]) > t]
            base = sum(future[j][t] for j in peers) / sum(weights[j][t + 1] for j in peers) if peers else 0.0
            total = total + weights[i][t] * kl[i][t] + (future[i][t] - weights[i][t + 1] * base) * logp[i][t]
    (COEF * total / len(rows)).backward()
    return {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_is_that_of_all_logits(shared: bool) -> None:
    step = held(shared=shared)
    result = step.run(whole(batch()), seed=0)
    expected, found = plain(batch()), gradients(step)
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

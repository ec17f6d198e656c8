"""Distillation on sampled tokens: gradients against plain torch with all logits, and runs that learn."""

from functools import partial

import pytest
import torch
from helpers_training import updater
from tiny import TURN_END, tiny_model, tiny_tokenizer
from torch import Tensor

from klent.models.chat import render_prompt
from klent.models.load import LoadedModel
from klent.policies.causal_lm.packing import Packing
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import takes_shared_prompt
from klent.policies.causal_lm.teacher import Teacher
from klent.rollout.mixture_engine import MixtureEngine
from klent.rollout.target import Target
from klent.rollout.transformers_engine import SamplingOptions
from klent.streams.batch import Batch, make_batch
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt
from klent.training.distill import distill_term
from klent.training.objective import Objective
from klent.training.update import Updater

PROMPTS = [Prompt(f"p/{i}", [{"role": "user", "content": text}], {"n": i}) for i, text in enumerate("ab")]
HINT = "the answer to {prompt} is {n}, as you know"
TEMPERATURE = 1.3


def loaded(seed: int) -> LoadedModel:
    return LoadedModel(tiny_model(seed), tiny_tokenizer(), "tiny", (TURN_END, 20, 21, 22, 23, 24))


def target() -> Target:
    return Target(loaded(1), prompt=HINT, temperature=TEMPERATURE)


def batch() -> Batch:
    engine = MixtureEngine(loaded(0), target(), SamplingOptions(max_tokens=7))
    rollouts = engine.generate(PROMPTS, group_size=3, seed=0)
    return make_batch(rollouts, [0.0] * len(rollouts), group_size=3)


def taught(
    divergence: str, skew: float, above: float | None = None, *, coef: float, **options: object
) -> Updater:
    """An updater whose only term is the divergence from the target."""
    step = updater(Objective({}, None, None, more=[distill_term(coef)]), **options)
    teacher = CausalPolicy(target().loaded.model, temperature=TEMPERATURE)
    teacher.packing = Packing(takes_shared_prompt(teacher, longest=64))
    encode = partial(target().encode, policy=tiny_tokenizer())
    kind = {"divergence": divergence, "skew": skew, "forward_above": above}
    step.policy.teachers = {"divergence": Teacher(teacher, encode, **kind)}
    return step


def logp(model: torch.nn.Module, ids: list[int], rollout: Episode, temperature: float = 1.0) -> Tensor:
    row = torch.tensor([ids + rollout.tokens.tolist()])
    return (model(input_ids=row).logits[0, len(ids) - 1 : -1] / temperature).log_softmax(-1)


def plain(
    rows: Batch, divergence: str, skew: float, above: float | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Mean over all tokens of the divergence, one completion at a time, and its gradient."""
    model, teacher, total = tiny_model(0), tiny_model(1), torch.zeros(())
    for rollout in rows.episodes:
        question = render_prompt(tiny_tokenizer(), target().question(rollout.prompt))
        p = logp(model, rollout.prompt_ids, rollout)
        t = logp(teacher, question, rollout, TEMPERATURE).detach()
        for own, other, forward in ((t, p, True), (p, t, False)):
            if divergence == ("reverse" if forward else "forward") and not (forward and above is not None):
                continue
            middle = (skew * own.exp() + (1 - skew) * other.exp()).log()
            each = (own.exp() * (own - middle)).sum(-1)
            unsure = torch.full_like(each, True) if above is None else -(t.exp() * t).sum(-1) > above
            total = total + (each * unsure if forward else each).sum()
    loss = total / rows.tokens
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "kind", [("forward", 0.0), ("reverse", 0.2), ("jeffreys", 0.0), ("reverse", 0.0, 4.94)], ids=str
)
def test_the_gradient_is_that_of_all_logits(shared, kind):
    rows = batch()
    step = taught(*kind, coef=2.0, shared=shared, tokens_per_microbatch=64)
    step.learning_rate = lambda number: 0.0
    result = step.run(rows, seed=0)
    loss, expected = plain(rows, *kind)
    assert result.loss == pytest.approx(2 * loss, rel=1e-4)
    total, count = result.sums["distill"]
    assert total / count == pytest.approx(loss, rel=1e-4)
    found = {name: p.grad for name, p in step.policy.named_parameters() if p.grad is not None}
    assert found.keys() == {f"model.{name}" for name in expected}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"model.{name}"], 2 * gradient, atol=1e-5, rtol=1e-3)


def test_steps_bring_the_policy_to_its_target():
    step = taught("reverse", 0.0, coef=1.0, lr=0.2)
    rows = batch()
    losses = [step.run(rows, seed=0).loss for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]

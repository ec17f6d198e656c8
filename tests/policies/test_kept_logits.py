"""Logits kept from a forward pass for its backward pass: as many as a recipe says, and no number is another."""

import pytest
import torch
from helpers_training import batch
from tiny import tiny_model

from klent.config import make_recipe
from klent.config.training import Update
from klent.errors import ConfigError
from klent.policies.causal_lm import policy as causal
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.memory import whole_bytes
from klent.runs.packing import kept_logits


def test_a_policy_gives_the_head_what_it_may_keep(monkeypatch):
    asked = []

    def spy(*args, **options):
        asked.append(options["keep_bytes"])
        return token_stats(*args, **options)

    token_stats = causal.token_stats
    monkeypatch.setattr(causal, "token_stats", spy)
    one = CausalPolicy(tiny_model(), temperature=0.7)
    rollouts = batch()
    gradients = []
    asked.clear()  # of what the policy tried when it was made
    for one.keep_bytes in (0, 1 << 20):
        one.zero_grad()
        stats = one.evaluate(rollouts, range(len(rollouts)))
        (stats.logp.sum() + stats.entropy.sum()).backward()
        gradients.append([p.grad.clone() for p in one.trainable().values()])
    assert asked == [0, 1 << 20]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_recipe_says_how_much():
    cpu = torch.device("cpu")
    assert kept_logits(Update(keep_logits=3), cpu) == 3_000_000
    assert kept_logits(Update(keep_logits=3, gradient_checkpointing=True), cpu) == 3_000_000
    assert kept_logits(Update(), cpu) == whole_bytes(cpu) // 64
    assert kept_logits(Update(gradient_checkpointing=True), cpu) == 0


def test_a_reward_model_has_none_to_keep():
    recipe = {
        "model": "tiny",
        "method": "reward_model",
        "steps": 1,
        "task": {"pairs": "p.jsonl"},
        "update": {"keep_logits": 5},
    }
    with pytest.raises(ConfigError, match=r"update\.keep_logits.*a reward model has no logits"):
        make_recipe(recipe)
    assert make_recipe({**recipe, "update": {}}).update.keep_logits == "auto"

"""Which passes a step needs: what is announced is what happens, and nothing is measured that nothing reads."""

import json
from dataclasses import replace

import pytest
import torch
from helpers_training import GRPO, batch, updater
from tiny import tiny_folder

from klent.config import make_recipe
from klent.control import witness
from klent.objectives import TokenLoss
from klent.runs.console import QuietConsole
from klent.runs.objective import step_requirements
from klent.runs.plan import describe_plan
from klent.runs.train import train
from klent.streams.registry import REGISTRY, Streams
from klent.streams.sets import PER_ACTION
from klent.training.objective import Objective
from klent.training.requirements import Requirements, requirements
from klent.training.term import Term
from klent.training.update import Updater

NONE = Requirements(
    old=False,
    value_old=False,
    reference=False,
    reselect=False,
    also=frozenset(),
    whole_groups=False,
    rewards=True,
)
GROUP = {"group_advantage": {"scale": "std"}}
KL_REWARD = {"kl_in_reward": {"coef": 0.1}}


def needs(loss, *, steps=1, token_reward=None, select=None, advantage=GROUP) -> Requirements:
    return requirements(Objective(loss, advantage, token_reward, select), optimizer_steps=steps)


def test_one_update_takes_its_old_numbers_from_its_own_pass():
    assert needs(GRPO[0]) == NONE
    assert needs(GRPO[0], steps=2).old


def test_a_loss_that_reads_no_old_numbers_pays_for_none():
    assert not needs({"reinforce": {}}, steps=4).old


def test_rewards_per_token_need_a_pass_before_the_update():
    found = needs({"reinforce": {}}, token_reward=KL_REWARD)
    assert found.old
    assert found.reference


def test_selectors_that_read_the_policy_look_again_before_later_steps():
    penalised = {"penalised": {"kl_cov_tokens": {"fraction": 0.1}}}
    drawn = {"mask": {"random_tokens": {"fraction": 0.2}}}
    assert not needs({"kl_cov": {}}, select=penalised).reselect
    assert needs({"kl_cov": {}}, steps=2, select=penalised).reselect
    assert not needs(GRPO[0], steps=2, select=drawn).reselect


def test_what_reads_no_advantage_needs_no_reward():
    assert not needs({"entropy_loss": {"coef": 1.0}}, advantage=None).rewards


def test_a_reward_model_is_asked_for_scores_and_has_no_actions():
    found = needs({"bradley_terry": {}}, advantage=None)
    assert found == replace(NONE, also=frozenset({"score"}), whole_groups=True, rewards=False)
    assert not found.actions
    assert NONE.actions


def test_a_term_about_whole_sequences_compares_inside_the_update_and_keeps_groups_whole():
    found = needs({"sequence_kl": {"coef": 0.1}}, advantage=None)
    assert found == replace(NONE, also=frozenset({"kl"}), whole_groups=True, rewards=False)
    found = needs({"sequence_entropy": {"coef": 0.1}}, advantage=None)
    assert found == replace(NONE, whole_groups=True, rewards=False)


RECIPES = {
    "grpo": {},
    "reinforce in minibatches": {"method": "reinforce", "update": {"minibatches": 2}},
    "grpo in minibatches": {"update": {"minibatches": 2}},
    "kl in the reward": {"token_reward": {"kl_in_reward": {"coef": 0.05}}},
    "kl in the loss": {"loss": {"kl_in_loss": {"coef": 0.05}}},
    "kl of sequences": {"loss": {"sequence_kl": {"coef": 0.05}}},
    "kl_cov": {"method": "kl_cov", "select": {"penalised": {"kl_cov_tokens": {"fraction": 0.1}}}},
    "steer": {"method": "steer"},
    "kl_cov_exact": {"method": "kl_cov_exact"},
}
#: passes without gradient: before the update, of the reference, between optimizer steps, and the probe after it
PASSES = {
    "grpo": 1,
    "reinforce in minibatches": 1,
    "grpo in minibatches": 2,
    "kl in the reward": 3,
    "kl in the loss": 2,
    "kl of sequences": 1,
    "kl_cov": 1 + 1 + 3,
    "steer": 1,
    "kl_cov_exact": 1 + 1 + 3,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_makes_the_passes_that_the_plan_announces(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(
        "def r(prompts, completions, **c): return [sum(map(ord, str(x))) % 7 for x in completions]\n"
    )
    rows = [json.dumps({"prompt": f"say {i}"}) for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    values = {
        "name": "tiny",
        "model": "model",
        "method": "grpo",
        "task": {"data": "prompts.jsonl"},
        "reward": "reward.py:r",
        "steps": 1,
        "prompts_per_step": 4,
        "group_size": 4,
        "rollout": {"max_tokens": 4},
        "optimizer": {"lr": 1e-3},
        "eval": None,
    }
    recipe = make_recipe(values | RECIPES[name])
    measured, measure = [], Updater.measure

    def counted(self, batch, rows, policy=None, **more):
        measured.append(policy)
        return measure(self, batch, rows, policy, **more)

    monkeypatch.setattr(Updater, "measure", counted)
    monkeypatch.setattr(
        witness, "due", lambda number: False
    )  # its pass is not the step's: every 64th step has it
    train(recipe, tmp_path / "run", command="test", console=QuietConsole())
    assert len(measured) == PASSES[name]
    plan, announced = step_requirements(recipe), "\n".join(describe_plan(recipe))
    assert plan.old == ("log-probs at the start of the step" in announced)
    compared = "kl" in plan.also
    assert (plan.reference or compared) == ("reference model: none" not in announced)
    assert compared == ("exact KL to the reference" in announced)
    assert plan.reselect == (
        "chosen anew" in announced or "select again" in announced or "again" in announced
    )
    assert sum(policy is not None for policy in measured) == plan.reference


def flat_but_for_the_far(logp, logp_old, mask):
    """A loss of a user's that is flat at 0 and at 0.25 nats either way, and pulls back from 0.3 on."""
    far = (logp - logp_old).abs() > 0.3
    return TokenLoss(torch.where(mask & far, (logp - logp_old) ** 2, 0.0), {})


def test_a_users_loss_that_is_flat_nearby_is_trained_all_the_same():
    objective = Objective({}, None, None)
    objective.terms = [Term("flat", flat_but_for_the_far, {}, frozenset({"logp", "logp_old", "mask"}))]
    rows = batch()
    assert objective.active_rows(rows) == list(range(12))
    step = updater(objective)
    rows.streams.logp_old = rows.streams.logp_gen - torch.where(rows.mask, 1.0, 0.0)  # it has moved by a nat
    result = step.run(rows, seed=0)
    assert result.grad_norm > 0.1


def test_two_terms_of_one_metric_report_it_under_their_names():
    rows = batch()
    objective = Objective({**GRPO[0], "cispo": {"ratio_max": 2.0}}, GROUP, None)
    step = updater(objective)
    objective.estimate_advantage(rows)
    sums = step.run(rows, seed=0).sums
    assert {"ppo_clip.ratio", "cispo.ratio"} <= sums.keys()
    assert "ratio" not in sums
    assert "clip_low" in sums  # only one term reports it


def test_an_importance_weight_multiplies_and_is_named_as_such():
    rows = batch()
    objective = Objective({"reinforce": {}}, GROUP, None)
    objective.estimate_advantage(rows)
    logp = rows.streams.logp_gen
    plain = objective.token_loss(rows.streams.with_(logp=logp)).loss
    weight = torch.full_like(logp, 0.5)
    weighted = objective.token_loss(rows.streams.with_(logp=logp, importance_weight=weight)).loss
    torch.testing.assert_close(weighted, 0.5 * plain)
    objective.terms = [replace(term, weighted=False) for term in objective.terms]
    apart = objective.token_loss(rows.streams.with_(logp=logp, importance_weight=weight)).loss
    torch.testing.assert_close(apart, plain)


def test_no_number_leaves_the_device_between_micro_batches(monkeypatch):
    rows = batch()
    step = updater(tokens_per_microbatch=40)
    step.objective.estimate_advantage(rows)
    inside, reads, accumulate = [False], [], Updater._accumulate

    def watched(self, *arguments):
        inside[0] = True
        accumulate(self, *arguments)
        inside[0] = False

    def reading(name):
        original = getattr(torch.Tensor, name)

        def read(tensor, *arguments):
            if inside[0] and tensor.requires_grad is False and tensor.dtype.is_floating_point:
                reads.append(name)
            return original(tensor, *arguments)

        return read

    monkeypatch.setattr(Updater, "_accumulate", watched)
    for name in ("item", "cpu", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, reading(name))
    assert len(step.policy.microbatches(rows, range(12))) > 2
    step.run(rows, seed=0)
    assert reads == []


def test_the_registry_says_all_of_every_stream():
    for name, stream in REGISTRY.items():
        assert stream.name == name
        assert stream.shape in ("[B, T]", "[B]")
        assert all((stream.unit, stream.meaning, stream.producer, stream.when))
    assert {"logp", "entropy", "mask", "advantage"} <= PER_ACTION


def test_a_stream_that_a_step_lacks_is_named():
    with pytest.raises(KeyError, match="this step has no advantage, logp_ref"):
        Streams(logp=torch.zeros(1, 1)).read(("logp", "logp_ref", "advantage"))

"""What an update is held against: the policy as it sampled, and the sampler's own numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers_training import batch, updater
from tiny import tiny_folder, tiny_model
from torch import Tensor

from klent.config import Lora, Mismatch, make_recipe
from klent.control.keeper import Keeper
from klent.control.mismatch import MismatchWeights
from klent.control.organ import StepRecord
from klent.errors import ConfigError
from klent.io.files import read_jsonl
from klent.models.load import load_policy
from klent.policies.causal_lm.kept import KeptWeights
from klent.policies.causal_lm.teacher import Teacher
from klent.runs.console import QuietConsole
from klent.runs.plan import describe_plan
from klent.runs.teachers import distance_teacher
from klent.runs.train import train
from klent.streams.batch import Batch
from klent.training.objective import Objective
from klent.training.requirements import requirements
from klent.training.update import Updater

GROUP = {"group_advantage": {"scale": "std"}}


def plain(model: torch.nn.Module, rows: Batch) -> list[Tensor]:
    """Log-probabilities of every token at every place, of each completion, ``[T, V]``."""
    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([e.prompt_ids + e.tokens.tolist()]))
            .logits[0, len(e.prompt_ids) - 1 : -1]
            .log_softmax(-1)
            for e in rows.episodes
        ]


def held(kind: str, **options: object) -> tuple[Updater, KeptWeights]:
    """An updater of an exact DPPO, and the weights that it is held against."""
    step = updater(Objective({"dppo": {}}, GROUP, None), asked=["distance"], **options)
    kept = KeptWeights(step.policy.model)
    step.policy.teachers = {"distance": distance_teacher(kind, step.policy, kept)}
    return step, kept


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_the_distance_is_that_of_all_logits_from_the_weights_that_were_kept(kind: str, shared: bool) -> None:
    step, _ = held(kind, shared=shared)
    rows = batch()
    before = plain(step.policy.model, rows)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in step.policy.trainable().values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = plain(step.policy.model, rows)
    stats = step.policy.evaluate(rows, range(len(rows)), also=["distance"])
    assert not stats.distance.requires_grad
    assert stats.logp.requires_grad
    for i, (q, p) in enumerate(zip(before, after, strict=True)):
        tv, kl = (p.exp() - q.exp()).abs().sum(-1) / 2, (q.exp() * (q - p)).sum(-1)
        expected = tv if kind == "tv" else kl
        torch.testing.assert_close(stats.distance[i, : len(q)], expected, atol=1e-5, rtol=1e-4)
        assert expected.max() > 0.05


def test_where_nothing_has_moved_the_distance_is_0_and_costs_nothing() -> None:
    step, kept = held("tv")
    rows, passes = batch(), []
    states = step.policy.states
    step.policy.states = lambda packed: passes.append(packed) or states(packed)
    stats = step.policy.evaluate(rows, range(len(rows)), also=["distance"])
    assert not stats.distance.any()
    assert len(passes) == 1
    with torch.no_grad():
        next(iter(step.policy.trainable().values())).mul_(1.01)
    step.policy.evaluate(rows, range(len(rows)), also=["distance"])
    assert len(passes) == 3
    Keeper(kept).before_step(2)
    step.policy.evaluate(rows, range(len(rows)), also=["distance"])
    assert len(passes) == 4


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, None])
def test_every_way_of_writing_weights_is_noticed(optimizer: type | None) -> None:
    model = tiny_model()
    kept = KeptWeights(model)
    old = {name: p.clone() for name, p in model.named_parameters()}
    assert not kept.moved
    model.lm_head.weight.sum().backward()
    if optimizer is None:
        model.load_state_dict(tiny_model(1).state_dict())
    else:
        fused = {"fused": True} if optimizer is torch.optim.AdamW else {"foreach": True}
        optimizer(model.parameters(), lr=0.1, **fused).step()
    assert kept.moved
    with kept.active():
        assert all(torch.equal(p, old[name]) for name, p in model.named_parameters())
    assert any(not torch.equal(p, old[name]) for name, p in model.named_parameters())
    kept.keep()
    assert not kept.moved


def test_tied_weights_stay_tied_while_they_are_put_back() -> None:
    model = tiny_model()
    model.lm_head.weight = model.get_input_embeddings().weight
    kept = KeptWeights(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with kept.active():
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert model.lm_head.weight.any()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not model.lm_head.weight.any()


def test_a_graph_over_the_weights_survives_that_others_are_put_in_their_place() -> None:
    step, kept = held("tv")
    rows = batch()
    step.policy.evaluate(rows, range(4)).logp.sum().backward()
    expected = {name: p.grad.clone() for name, p in step.policy.trainable().items()}
    step.policy.zero_grad()
    logp = step.policy.evaluate(rows, range(4)).logp
    for copy in kept.copies.values():
        copy.data.mul_(2)
    with kept.active():
        step.policy.evaluate(rows, range(4))
    logp.sum().backward()
    for name, parameter in step.policy.trainable().items():
        assert torch.equal(parameter.grad, expected[name])


def test_an_exact_trust_region_drops_what_the_sampled_token_does_not_show() -> None:
    # the same large first step; in the second the exact distance is past the threshold more often
    dropped = {}
    for name, asked in (("exact", ["distance"]), ("sampled", [])):
        step, _ = held("tv", lr=2.0, epochs=2)
        step.needs = requirements(step.objective, optimizer_steps=2, asked=asked)
        rows = batch()
        step.objective.estimate_advantage(rows)
        sums = step.run(rows, seed=0).sums
        dropped[name] = sums["clip_low"][0] + sums["clip_high"][0]
        assert sums["distance"][0] > 0
    assert dropped["exact"] > dropped["sampled"]


def test_a_term_that_can_do_without_a_distance_asks_for_none() -> None:
    objective = Objective({"dppo": {}}, GROUP, None)
    assert requirements(objective, optimizer_steps=4).also == frozenset()
    assert requirements(objective, optimizer_steps=4, asked=["distance"]).also == {"distance"}
    assert not requirements(objective, optimizer_steps=1).old
    assert requirements(objective, optimizer_steps=1, asked=["logp_old"]).old


@pytest.mark.parametrize("mode", ["truncate", "mask_token", "mask_sequence", "icepop"])
def test_modes_of_mismatch_table(mode: str) -> None:
    # trainer/sampler: 1, 4, 0.25 in a row whose product is 1, and 1, 1, 4
    rows = batch()
    ratio = torch.tensor([[1.0, 4.0, 0.25], [1.0, 1.0, 4.0]])
    rows.mask = torch.ones(2, 3, dtype=torch.bool)
    rows.streams.logp_old, rows.streams.logp_gen = ratio.log(), torch.zeros(2, 3)
    MismatchWeights(Mismatch(mode=mode)).after_rollout(rows)
    expected = {
        "truncate": [[1.0, 2.0, 0.25], [1.0, 1.0, 2.0]],
        "mask_token": [[1.0, 0.0, 0.25], [1.0, 1.0, 0.0]],
        "mask_sequence": [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]],
        "icepop": [[1.0, 4.0, 0.0], [1.0, 1.0, 4.0]],
    }
    torch.testing.assert_close(rows.streams.importance_weight, torch.tensor(expected[mode]))


def mismatched(row: int) -> Batch:
    """A batch of which the sampler says that one completion was far less likely than the trainer finds it."""
    rows = batch()
    rows.streams.logp_old = rows.streams.logp_gen.clone()
    rows.streams.logp_ref = rows.streams.logp_gen - 0.3 * rows.mask
    rows.streams.logp_gen[row] -= 5 * rows.mask[row]
    return rows


LOSSES = [
    {"ppo_clip": {}, "kl_in_loss": {"coef": 0.1}, "entropy_loss": {"coef": -0.1}},
    {"kl_in_loss": {"coef": 0.1}},
    {"dppo": {}, "kl_in_loss": {"coef": 0.1}},
    {"drpo": {}},
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "+".join(loss))
def test_a_masked_completion_loses_every_term(loss: dict[str, dict[str, object]]) -> None:
    rows = mismatched(3)
    objective = Objective(loss, GROUP, None)
    organ = MismatchWeights(Mismatch(mode="mask_sequence"))
    organ.after_rollout(rows)
    objective.estimate_advantage(rows)
    streams = rows.streams.with_(logp=rows.streams.logp_old, entropy=rows.streams.entropy_gen)
    weighted = objective.token_loss(streams).loss
    unweighted = objective.token_loss(streams.with_(importance_weight=None)).loss
    assert unweighted[3].any()
    assert not weighted[3].any()
    others = [i for i in range(len(rows)) if i != 3]
    torch.testing.assert_close(weighted[others], unweighted[others])  # their ratio is 1
    assert 3 not in objective.active_rows(rows)
    assert objective.active_rows(rows)


def test_a_loss_that_weighs_itself_is_not_weighted_twice() -> None:
    rows = mismatched(3)
    rows.streams.logp_gen[3] = rows.streams.logp_old[3] - 0.1 * rows.mask[3]
    MismatchWeights(Mismatch(mode="icepop")).after_rollout(rows)
    for loss, twice in (({"dppo": {}}, False), ({"reinforce": {}}, True)):
        objective = Objective(loss, GROUP, None)
        objective.estimate_advantage(rows)
        streams = rows.streams.with_(logp=rows.streams.logp_old)
        weighted = objective.token_loss(streams).loss[3]
        unweighted = objective.token_loss(streams.with_(importance_weight=None)).loss[3]
        expected = unweighted * math.exp(0.1) if twice else unweighted
        torch.testing.assert_close(weighted, expected)


def test_what_is_logged_of_a_mismatch() -> None:
    rows = mismatched(3)
    organ = MismatchWeights(Mismatch(mode="mask_sequence"))
    organ.after_rollout(rows)
    step = updater()
    step.objective.estimate_advantage(rows)
    logged = organ.after_update(StepRecord(1, rows, None, step.run(rows, seed=0)))
    tokens, length = float(rows.mask.sum()), float(rows.mask[3].sum())
    assert logged["mismatch/log_ratio"] == pytest.approx(5 * length / tokens, rel=1e-5)
    assert logged["mismatch/kept"] == pytest.approx(1 - length / tokens)
    assert logged["mismatch/ess"] == pytest.approx(
        1 / len(rows), rel=1e-3
    )  # one completion has all the weight


RECIPE = {
    "name": "held",
    "model": "model",
    "method": "dppo_exact",
    "task": {"data": "prompts.jsonl"},
    "reward": "reward.py:r",
    "steps": 2,
    "prompts_per_step": 4,
    "group_size": 4,
    "rollout": {"max_tokens": 4, "mismatch": "mask_sequence"},
    "optimizer": {"lr": 0.05},
    "eval": None,
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(
        "def r(prompts, completions, **c): return [sum(map(ord, str(x))) % 7 for x in completions]\n"
    )
    rows = [json.dumps({"prompt": f"say {i}"}) for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_of_a_model_with_adapters_only_these_are_kept(world: Path) -> None:
    model = load_policy("model", lora=Lora(rank=2)).model
    kept = KeptWeights(model)
    trained = [p for name, p in model.named_parameters() if ".lora_" in name]
    assert {id(p) for p in trained} == {id(p) for p in kept.trained}
    row = torch.arange(5, 15)[None]
    before = model(input_ids=row).logits
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.5)
        assert kept.moved
        after = model(input_ids=row).logits
        with kept.active():
            assert torch.equal(model(input_ids=row).logits, before)
        assert torch.equal(model(input_ids=row).logits, after)
    assert not torch.allclose(before, after)


def test_a_run_with_an_exact_trust_region_and_masked_mismatch(world: Path) -> None:
    recipe = make_recipe(RECIPE)
    text = "\n".join(describe_plan(recipe))
    assert "distance: total variation from the policy at the start of the step" in text
    assert "weighted by trainer/sampler per sequence, every term" in text
    assert (
        "log-probs at the start of the step: one more forward pass (weights for the sampler use them)" in text
    )
    run = train(recipe, world / "run", command="test", console=QuietConsole())
    for row in read_jsonl(run / "metrics.jsonl"):
        assert row["objective/distance"] > 0
        assert 0 <= row["mismatch/log_ratio"] < 1e-3
        assert row["mismatch/kept"] == 1
        assert row["mismatch/ess"] == pytest.approx(1, abs=1e-3)


def test_the_plan_says_where_a_distance_is_0_throughout() -> None:
    one = make_recipe({**RECIPE, "update": {"minibatches": 1}})
    assert "0 throughout, as a step has one optimizer step" in "\n".join(describe_plan(one))
    sampled = "\n".join(describe_plan(make_recipe({**RECIPE, "method": "dppo"})))
    assert "distance" not in sampled
    assert "dppo(threshold=0.2, ratio_max=20.0) reads advantage, logp, logp_gen" in sampled


USER = "def mine(logp, distance, advantage, mask):\n    return -distance * advantage * logp * mask\n"
WRONG = [
    ({"method": "grpo", "update": {"distance": "tv"}}, "update.distance.* is not used: no term"),
    (
        {"rollout": {"mixture": {"target": "teacher"}}},
        "update.distance.* is measured from the policy as it was",
    ),
    (
        {"method": "grpo", "rollout": {"mismatch": "icepop", "mixture": {"target": "t"}}},
        "and so does rollout.mix",
    ),
    (
        {"rollout": {"mismatch": "truncate"}},
        "is not used: the loss .dppo. has the ratio to the sampler in it",
    ),
    ({"rollout": {"mismatch": {"mode": "icepop", "low": 2}}}, "rollout.mismatch.low"),
    ({"loss": {"dppo": None, "mine.py:mine": {}}, "update": {"distance": None}}, "set update.distance: tv"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_meant_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USER)
    with pytest.raises(ConfigError, match=message):
        make_recipe({**RECIPE, **changes})


def test_a_teacher_that_trains_nothing_takes_no_gradient_and_shares_no_products() -> None:
    step, kept = held("kl")
    assert not step.policy.teachers["distance"].plain
    assert Teacher(step.policy, active=kept.active).plain
    assert not Teacher(step.policy, trains=False).plain

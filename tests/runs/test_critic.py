"""PPO with a critic through the whole loop: against float64, cut differently, interrupted, and on other trunks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles import ppo as oracle
from safetensors.torch import load_file, save_file
from tiny import tiny_folder, tiny_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from klent.config import Recipe, make_recipe
from klent.errors import ModelError
from klent.io.files import read_jsonl
from klent.models.load import load_policy
from klent.policies.causal_lm.packing import Completion, pack
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.reward_model import RewardModel, at_end
from klent.runs.console import QuietConsole
from klent.runs.critics import build_critic, critic_shares
from klent.runs.export import export_checkpoint
from klent.runs.fingerprint import take_fingerprint
from klent.runs.train import train
from klent.streams.batch import Batch
from klent.training.update import Updater

REWARD = """
def odd(completions, **columns):
    return [None if len(c) % 4 == 3 else sum(map(ord, c)) % 7 / 7 for c in completions]
"""
VALUES = {
    "name": "tiny",
    "model": "model",
    "method": "ppo",
    "task": {"data": "prompts.jsonl"},
    "reward": "reward.py:odd",
    "steps": 2,
    "prompts_per_step": 4,
    "group_size": 2,
    "rollout": {"max_tokens": 6},
    "advantage": {"gae": {"gamma": 0.9, "lam": 0.8}, "whiten": {"shift": True}},
    "loss": {"ppo_clip": {"clip_low": 0.2, "clip_high": 0.2}, "value": {"coef": 0.3, "clip": 0.1}},
    "update": {"epochs": 2, "minibatches": 2},
    "optimizer": {"lr": 0.01, "eps": 1e-3},
    "adaptive_kl": {"target": 0.01, "horizon": 100},
    "checkpoint": {"every": 1, "keep": 9},
    "eval": None,
}
METHOD = oracle.Settings(kl=0.05, gamma=0.9, lam=0.8, clip=0.2, value_coef=0.3, value_clip=0.1, max_norm=1.0)
Seen = list[tuple[Batch, list[list[int]]]]


def project(folder: Path) -> Path:
    """A folder with a model, prompts of unequal lengths, and a reward that fails for some completions."""
    model = tiny_folder(folder / "model")
    stops = json.loads((model / "generation_config.json").read_text())
    stops["eos_token_id"] = [4, 2, *range(20, 60)]  # so that completions differ in length
    (model / "generation_config.json").write_text(json.dumps(stops))
    (folder / "reward.py").write_text(REWARD)
    rows = [{"prompt": f"say {i}" + "!" * (i % 3)} for i in range(16)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(name: str, *, resume: bool = False, **changes: Any) -> Path:
    recipe = make_recipe(VALUES | changes)
    return train(recipe, Path("runs") / name, command="c", resume=resume, console=QuietConsole())


def trained(run: Path, step: int = 2) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds of policy and critic."""
    return load_file(run / "checkpoints" / f"{step:06d}" / "model.safetensors")


def moved(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference, in units of how far the update moved anything from the tiny model."""
    start = {name: p.detach() for name, p in tiny_model().named_parameters()}
    assert found.keys() == expected.keys()
    far = max(float((expected[name] - start[name]).abs().max()) for name in start if name in expected)
    return max(float((found[name] - expected[name]).abs().max()) for name in found) / far


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two steps, with the batches that it was trained on."""
    patch = pytest.MonkeyPatch()
    folder = project(tmp_path_factory.mktemp("ppo"))
    patch.chdir(folder)
    seen: Seen = []
    update = Updater.run

    def spy(self: Updater, batch: Batch, *, seed: int, **more: Any) -> Any:
        seen.append((batch, list(self._plan(batch, seed))))
        return update(self, batch, seed=seed, **more)

    patch.setattr(Updater, "run", spy)
    path = folder / run("whole")
    patch.undo()
    return SimpleNamespace(folder=folder, path=path, seen=seen)


@pytest.fixture
def here(whole: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.chdir(whole.folder)
    return whole


def double() -> LlamaForCausalLM:
    return tiny_model().double().train()


def episodes(batch: Batch) -> list[oracle.Episode]:
    assert batch.reward is not None
    return [
        oracle.Episode(list(e.prompt_ids), e.tokens.tolist(), float(batch.reward[row]))
        for row, e in enumerate(batch.episodes)
    ]


def test_two_steps_end_where_float64_ends(here: SimpleNamespace) -> None:
    """GAE, whitening, clips of ratio and value, an adaptive KL in the reward, epochs, unequal and unscorable rows."""
    head = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((1, 32), (1,))]
    actor = oracle.Actor(double(), double().eval(), double(), *head)
    assert actor.trunk is not None
    named = dict(actor.policy.named_parameters())
    named |= {f"critic.trunk.{name}": p for name, p in actor.trunk.named_parameters()}
    named |= {"critic.head.weight": head[0], "critic.head.bias": head[1]}
    optimizer = torch.optim.AdamW(
        list(named.values()), lr=0.01, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0
    )
    method, coefs = METHOD, []
    for batch, plan in here.seen:
        asked = episodes(batch)
        lengths = {len(one.tokens) for one in asked}
        assert len(lengths) > 1
        numbers = oracle.update(actor, asked, plan, method, optimizer)
        kl = oracle.completion_kl(actor, asked, numbers)
        coefs.append(method.kl)
        turned = 1 + min(max(kl / 0.01 - 1, -0.2), 0.2) * len(asked) / 100
        method = replace(method, kl=method.kl * turned)
        for row, one in enumerate(asked):
            for stream, values in (("advantage", numbers.advantage), ("returns", numbers.returns)):
                found = batch.streams.get(stream)
                assert found is not None
                expected = torch.as_tensor(values[row]).float()
                torch.testing.assert_close(found[row, : len(one.tokens)], expected, atol=2e-4, rtol=1e-3)
    logged = [row["kl/coef"] for row in read_jsonl(here.path / "metrics.jsonl")]
    assert (
        logged == pytest.approx(coefs) == [0.05, 0.05 * (1 - 0.2 * 8 / 100)]
    )  # no distance yet in the first
    assert any(one.reward != one.reward for batch, _ in here.seen for one in episodes(batch))
    assert moved(trained(here.path), {name: p.detach().float() for name, p in named.items()}) < 2e-3


def test_micro_batches_packing_and_attention_change_nothing(here: SimpleNamespace) -> None:
    expected = trained(here.path, 1)
    for name, changes in {
        "small": {"update": {"epochs": 2, "minibatches": 2, "tokens_per_microbatch": 30}},
        "apart": {
            "update": {"epochs": 2, "minibatches": 2, "packing": "off", "gradient_checkpointing": True}
        },
    }.items():
        cut = run(name, steps=1, attention="eager", **changes)
        assert moved(trained(cut, 1), expected) < 2e-3


def test_a_resumed_run_ends_as_the_whole_one(here: SimpleNamespace) -> None:
    """Bit for bit: the critic, its optimizer's memory, and what it said at every step."""
    run("cut", steps=1)
    cut = run("cut", resume=True)
    for name in ("model", "optimizer"):
        files = [path / "checkpoints" / "000002" / f"{name}.safetensors" for path in (cut, here.path)]
        left, right = map(load_file, files)
        assert left.keys() == right.keys()
        assert any(key.endswith("critic.head.weight") for key in left)
        assert all(torch.equal(left[key], right[key]) for key in left)
    last = [list(read_jsonl(path / "metrics.jsonl"))[-1] for path in (cut, here.path)]
    assert last[0]["value/explained"] == last[1]["value/explained"]


def test_a_run_says_what_its_critic_is_worth(here: SimpleNamespace) -> None:
    first, second = read_jsonl(here.path / "metrics.jsonl")
    assert first["value/mean"] == 0.0  # it starts from nothing
    assert second["value/mean"] != 0.0
    batch = here.seen[1][0]
    known = batch.mask & ~batch.reward.isnan()[:, None]
    value, target = batch.streams.value_old[known].double(), batch.streams.returns[known].double()
    assert second["value/explained"] == pytest.approx(1 - float((target - value).var() / target.var()))
    assert {"value/error", "value/clipped"} <= second.keys()
    sample = next(read_jsonl(here.path / "samples.jsonl"))
    assert len(sample["value"]) == len(sample["tokens"])


def test_a_checkpoint_is_exported_without_its_critic(here: SimpleNamespace) -> None:
    folder = export_checkpoint(here.path, step=2, folder=Path("exported"), on_damage=print)
    assert not any("critic" in name for name in load_file(folder / "model.safetensors"))


def test_a_shared_trunk_under_lora_moves_the_adapter_and_the_head_alone(here: SimpleNamespace) -> None:
    path = run("lora", steps=1, critic={"trunk": "shared"}, lora={"rank": 2})
    names = trained(path, 1).keys()
    assert all("lora_" in name or name.startswith("critic.head") for name in names)
    assert {"critic.head.weight", "critic.head.bias"} <= names
    (row,) = read_jsonl(path / "metrics.jsonl")
    assert 0 < row["value/gradient_share"] < 1


# --- from a reward model ---------------------------------------------------------------------------


def reward_model(folder: Path, labels: int = 1, **changes: Any) -> Path:
    """A sequence classifier's folder, with the tiny tokenizer."""
    tiny_folder(folder)
    config = tiny_model().config
    config.update({"num_labels": labels, **changes})
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


def critic_from(name: Path) -> Any:
    recipe: Recipe = make_recipe(VALUES | {"critic": {"model": str(name)}})
    loaded = load_policy("model")
    policy = CausalPolicy(loaded.model, temperature=1.0)
    assert recipe.critic is not None
    return build_critic(recipe.critic, recipe, policy, loaded, lambda text: None)


@pytest.mark.parametrize("tied", [True, False])
def test_a_critic_starts_from_a_reward_model(here: SimpleNamespace, tied: bool) -> None:
    folder = reward_model(Path(f"rm-{tied}"), tie_word_embeddings=tied)
    critic = critic_from(folder)
    named = {"model": "model", "critic": {"model": str(folder)}}
    assert "critic.model" in take_fingerprint(named).content  # another folder is another run
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(critic.head.weight, saved["score.weight"])
    layers = dict(critic.trunk.named_parameters())
    assert all(torch.equal(layers[name], saved[name]) for name in saved if name != "score.weight")
    assert critic_shares(critic, longest=64)
    assert critic.takes_blocks
    assert tied == layers["model.embed_tokens.weight"].equal(critic.trunk.lm_head.weight)
    assert tied == critic.trunk.lm_head.weight.requires_grad  # a head that nothing reads is not trained


def test_before_it_has_learnt_it_expects_what_a_centred_reward_model_gives(here: SimpleNamespace) -> None:
    folder = reward_model(Path("rm-centred"))
    rm = RewardModel(load_policy(str(folder), scores=True).model)
    rm.centre(2.5)
    rm.model.config.save_pretrained(folder)
    text = [1, 7, 12, 30, 41]
    centred = RewardModel(load_policy(str(folder), scores=True).model)
    one = at_end(Completion(0, text[:2], torch.tensor(text[2:]), 0), None)
    with torch.no_grad():
        expected = centred(pack([[one]], shared=False)).logp
        assert expected == pytest.approx(float(rm(pack([[one]], shared=False)).logp))
    critic = critic_from(folder)
    with torch.no_grad():
        found = critic.numbers(pack([[one]], shared=False), torch.empty(0), ["value"])["value"]
    assert critic.head.bias.item() == -2.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def damaged(folder: Path, change: Any) -> Path:
    file = reward_model(folder) / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"] = change(tensors["score.weight"])
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_reward_models_that_no_critic_can_start_from(here: SimpleNamespace) -> None:
    with pytest.raises(ModelError, match="scores 2 labels, and a critic expects one number"):
        critic_from(reward_model(Path("two"), labels=2))
    with pytest.raises(ModelError, match="hidden states of 16 numbers, and its layers give 32"):
        critic_from(damaged(Path("narrow"), lambda weight: weight[:, :16].contiguous()))
    with pytest.raises(ModelError, match="numbers that are not finite"):
        critic_from(damaged(Path("nan"), lambda weight: weight * float("nan")))
    folder = reward_model(Path("words"))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"A": 40', '"A": 41').replace('"B": 41', '"B": 40'))
    with pytest.raises(ModelError, match="another tokenizer than the policy: 'A' is token 41 there, 40 here"):
        critic_from(folder)

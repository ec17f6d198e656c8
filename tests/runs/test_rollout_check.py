"""klent doctor --rollout: a sound recipe is flat at rate 0, and each fault of a sampler is named."""

import json

import pytest
import torch
from own_engine import OwnEngine
from tiny import tiny_folder
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from klent.cli import app
from klent.config import make_recipe
from klent.errors import ConfigError
from klent.models.load import LoadedModel
from klent.rollout.transformers_engine import SamplingOptions
from klent.runs import language
from klent.runs.rollout_check import examine_rollout

RECIPE = """\
name: tiny
model: model
method: grpo
task: {data: prompts.jsonl}
reward: exact
steps: 40
prompts_per_step: 3
group_size: 4
rollout: {max_tokens: 14, temperature: 1.2}
optimizer: {lr: 0.01}
"""


class Unchecked(OwnEngine):
    """Takes weights over, and certifies nothing."""

    def sync(self, policy):
        self.load(policy.model)
        if self.fault == "drifts":
            with torch.no_grad():
                self.drift = getattr(self, "drift", 0) + 1
                for parameter in self.loaded.model.parameters():
                    parameter.mul_(1 + 1e-4 * (self.drift - 1))


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    rows = [{"prompt": f"say {i}", "answer": str(i), "completion": "x"} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(RECIPE)

    def broken(kind, fault):
        def build(loaded, rollout, *args, **more):
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
            copy = LoadedModel(model, loaded.tokenizer, "copy", loaded.stop_ids)
            options = SamplingOptions(rollout.max_tokens, rollout.temperature)
            return kind(copy, options, fault=fault)

        monkeypatch.setattr(language, "build_engine", build)

    return broken


def recipe(**changes):
    import yaml

    return make_recipe(yaml.safe_load(RECIPE) | changes)


def faults(checks):
    return [check for check in checks if check.state == "fault"]


def test_a_sound_recipe_is_flat_at_rate_0(world):
    checks = examine_rollout(recipe())
    assert [check.name for check in checks] == ["gap at step 1", "gap at step 2", "gap at step 3", "sampler"]
    assert not faults(checks)


@pytest.mark.parametrize(
    ("fault", "name", "said"),
    [
        ("late", "wrong indexing", "one token late"),
        ("early", "wrong indexing", "one token early"),
        ("wrong temperature", "wrong temperature", "those of temperature 0.84, and the trainer's of 1.2"),
        ("raw logp", "wrong temperature", "those of temperature 1, and the trainer's of 1.2"),
        ("top_k", "wrong truncation", "the 5 most likely tokens"),
        ("top_p", "wrong truncation", "of the probability (top_p)"),
        ("wrong dtype", "wrong dtype", "as far from the policy's as those of a copy in bfloat16"),
        ("other weights", "other weights", "of no policy that the trainer holds"),
        ("drifts", "not flat", "the sampler's weights move"),
    ],
)
def test_each_fault_is_named(world, fault, name, said):
    world(Unchecked, fault)
    found = faults(examine_rollout(recipe(), steps=2))
    assert name in [check.name for check in found]
    assert any(said in check.text for check in found)


def test_truncation_of_the_recipe_itself_is_what_the_trainer_does_not_do(world):
    (found,) = faults(examine_rollout(recipe(rollout={"max_tokens": 14, "top_k": 6})))
    assert (found.name, "the 6 most likely tokens" in found.text) == ("wrong truncation", True)


def test_an_engine_that_certifies_stops_the_doctor_with_its_reason(world):
    world(
        OwnEngine, "old weights"
    )  # the copy begins as the trainer's weights, so that only the sampling differs
    assert not faults(examine_rollout(recipe(), steps=1))
    world(OwnEngine, "wrong dtype")
    (found,) = faults(examine_rollout(recipe(), steps=1))
    assert found.name == "sync"
    assert "(wrong dtype)" in found.text


def test_nothing_is_trained(world):
    weights = {}

    class Watched(Unchecked):
        def sync(self, policy):
            for name, parameter in policy.trainable().items():
                assert torch.equal(weights.setdefault(name, parameter.detach().clone()), parameter)
            super().sync(policy)

    world(Watched, "")
    assert not faults(examine_rollout(recipe()))
    assert weights


def test_a_recipe_that_samples_nothing_is_refused(world):
    replay = recipe(method="sft", reward=None, rollout={"engine": "dataset"}, group_size=1, eval=None)
    with pytest.raises(ConfigError, match="samples none"):
        examine_rollout(replay)


def test_the_verb_prints_and_exits(world):
    sound = CliRunner().invoke(app, ["doctor", "--rollout", "tiny.yaml"])
    assert (sound.exit_code, "the gap is flat" in " ".join(sound.output.split())) == (0, True)
    wrong = CliRunner().invoke(app, ["doctor", "--rollout", "tiny.yaml", "rollout.top_k=6"])
    assert (wrong.exit_code, "wrong truncation" in wrong.output) == (1, True)
    lost = CliRunner().invoke(app, ["doctor", "rollout.top_k=6"])
    said = " ".join(lost.stderr.replace("│", " ").split())
    assert (lost.exit_code, "write --recipe or --rollout RECIPE before it" in said) == (2, True)

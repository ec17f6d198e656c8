"""The sync certificate: an engine with weights of its own shows the policy's numbers, and each fault is named."""

import json
import re

import pytest
import torch
from own_engine import FAULTS, OwnEngine
from tiny import TURN_END, merging_tokenizer, tiny_folder, tiny_model, tiny_tokenizer

from klent.config import make_recipe
from klent.errors import SyncError
from klent.io.files import read_jsonl
from klent.models.adapter import add_adapter
from klent.models.load import LoadedModel
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.causes import Reading, Sampler, explain
from klent.rollout.transformers_engine import SamplingOptions
from klent.runs import engines, language
from klent.runs.console import QuietConsole
from klent.runs.train import train

OPTIONS = SamplingOptions(max_tokens=12, temperature=1.3)


def engine(fault: str = "", **more) -> OwnEngine:
    return OwnEngine(loaded(), OPTIONS, fault=fault, **more)


def loaded() -> LoadedModel:
    return LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END,))


def move(policy: CausalPolicy, size: float, seed: int = 0) -> None:
    """An update: noise of this size on everything that is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def test_an_engine_with_the_policys_weights_is_certified_after_every_update():
    policy, sampler = CausalPolicy(tiny_model(), temperature=1.3), engine()
    first = sampler.sync(policy)
    assert first.arrived is None
    assert first.gap < 1e-5
    for seed in range(3):
        move(policy, 0.01, seed)
        certificate = sampler.sync(policy)
        assert certificate.gap <= certificate.gap_max < 1e-4
        assert certificate.arrived == pytest.approx(1.0, abs=1e-3)
        assert certificate.metrics().keys() == {"sync/gap", "sync/gap_max", "sync/arrived"}


def test_half_of_an_update_that_arrives_is_half_and_the_arithmetic_is_that_of_the_page():
    """gap and arrived from logits that are read here, without the certificate's code."""
    policy, sampler = CausalPolicy(tiny_model(), temperature=1.3), engine()
    sampler.sync(policy)
    rows = sampler.certifier.rows

    def numbers(model):
        parts = []
        for prompt, tokens in rows:
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].double()
            parts.append(logits.log_softmax(-1)[range(len(tokens)), list(tokens)])
        return torch.cat(parts).detach()

    before = numbers(policy.model)
    start = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    move(policy, 3e-5)
    trained = policy.model.state_dict()
    mine = sampler.loaded.model
    sampler.load = lambda model: mine.load_state_dict({n: (2 * start[n] + 3 * trained[n]) / 5 for n in start})
    certificate = sampler.sync(policy)
    change, shown = numbers(policy.model) - before, numbers(mine) - before
    assert certificate.arrived == pytest.approx(
        float((change * shown).sum() / change.square().sum()), rel=1e-2
    )
    assert certificate.arrived == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"adapter missing"}))
def test_each_fault_stops_the_run_by_its_name(fault):
    policy = CausalPolicy(tiny_model(), temperature=1.3)
    sampler = engine(tokenizer=merging_tokenizer()) if fault == "wrong tokenizer" else engine()
    if fault != "wrong tokenizer":
        sampler.sync(policy)
    move(policy, 0.01)
    sampler.fault = fault
    with pytest.raises(SyncError) as caught:
        sampler.sync(policy)
    assert caught.value.cause == FAULTS[fault]
    assert FAULTS[fault] in str(caught.value)


def test_an_adapter_that_never_arrives_is_named():
    pytest.importorskip("peft")
    settings = make_recipe(
        {"name": "x", "model": "m", "method": "grpo", "task": {"data": "x"}, "reward": "exact", "steps": 1}
        | {"lora": {"rank": 2}}
    ).lora
    policy = CausalPolicy(add_adapter(tiny_model(), settings, seed=0), temperature=1.3)
    sampler = engine("adapter missing")
    sampler.sync(policy)  # a fresh adapter adds nothing
    move(policy, 0.05)
    with pytest.raises(SyncError) as caught:
        sampler.sync(policy)
    assert caught.value.cause == "adapter missing"
    sampler.fault = ""
    assert sampler.sync(policy).arrived == pytest.approx(1.0, abs=1e-3)


def test_updates_too_small_for_the_gap_are_missed_by_no_sync():
    """Each is far below what the gap allows; that none arrives shows all the same."""
    policy, sampler = CausalPolicy(tiny_model(), temperature=1.3), engine()
    sampler.sync(policy)
    sampler.fault = "old weights"
    stopped = ""
    for seed in range(40):
        move(policy, 2e-6, seed)
        try:
            certificate = sampler.sync(policy)
        except SyncError as error:
            stopped = str(error)
            break
        assert certificate.gap < sampler.certifier.tolerance.mean
        assert certificate.arrived is None
    assert "(old weights): 0.00 of the last update's change" in stopped


def reading(temperature: float, top_p: float, top_k: int) -> Reading:
    """Tokens and numbers of a sampler over made-up logits, by NumPy-like steps of its own."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(40, 60, generator=generator)
    probabilities = (logits / temperature).double().softmax(-1)
    ordered, index = probabilities.sort(-1, descending=True)
    for row in range(40):
        count = top_k or 60
        mass = ordered[row, :count] / ordered[row, :count].sum()
        count = min(count, int((mass.cumsum(0) < top_p).sum()) + 1)
        probabilities[row, index[row, count:]] = 0
    probabilities /= probabilities.sum(-1, keepdim=True)
    tokens = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return Reading(logits, tokens, probabilities[range(40), tokens].log().float(), (25, 15))


@pytest.mark.parametrize(
    ("sampler", "taken", "said"),
    [
        ((0.6, 1.0, 0), (1.0, 1.0, 0), "temperature 0.6"),
        ((1.0, 0.7, 0), (1.0, 1.0, 0), r"hold 0\.[67]\d* of the probability"),
        ((1.0, 1.0, 7), (1.0, 1.0, 0), "the 7 most likely"),
        ((1.0, 1.0, 0), (1.0, 0.7, 0), "before truncation"),
        ((1.0, 1.0, 0), (1.0, 1.0, 0), None),
    ],
)
def test_settings_are_read_off_the_numbers(sampler, taken, said):
    fault = explain(reading(*sampler), Sampler(*taken), tolerance=1e-4)
    if said is None:
        assert fault is None
    else:
        assert fault is not None
        assert re.search(said, fault.sentence), fault


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a tiny model, and an engine of its own weights in place of the usual one."""
    monkeypatch.chdir(tmp_path)
    folder = tiny_folder(tmp_path / "model")
    made = []

    def own(loaded, rollout, *args, progress=None, **more):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        made.append(OwnEngine(LoadedModel(model, loaded.tokenizer, "copy", loaded.stop_ids), OPTIONS))
        return made[-1]

    monkeypatch.setattr(language, "build_engine", own)
    (tmp_path / "reward.py").write_text(
        "def digits(prompts, completions, **columns):\n"
        "    return [sum(c.isdigit() for c in str(text)) for text in completions]\n"
    )
    rows = [{"prompt": f"say {i}"} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, made


def run(folder, **changes):
    recipe = {
        "name": "tiny",
        "model": "model",
        "method": "grpo",
        "task": {"data": "prompts.jsonl"},
        "reward": "reward.py:digits",
        "steps": 3,
        "prompts_per_step": 2,
        "group_size": 4,
        "rollout": {"max_tokens": 12, "temperature": 1.3},
        "optimizer": {"lr": 0.01},
        "eval": None,
    }
    console = QuietConsole()
    return train(make_recipe(recipe | changes), folder / "run", command="klent train tiny", console=console)


def test_a_run_logs_its_certificates(world):
    folder, _ = world
    rows = list(read_jsonl(run(folder) / "metrics.jsonl"))
    assert [set(row) & {"sync/arrived"} for row in rows] == [set(), {"sync/arrived"}, {"sync/arrived"}]
    for row in rows:
        assert row["sync/gap"] <= row["sync/gap_max"] < 1e-3
        assert row["policy/logp_mismatch"] < 1e-3
    assert rows[2]["sync/arrived"] == pytest.approx(1.0, abs=1e-2)


def test_a_run_whose_weights_stop_arriving_stops_with_the_reason(world, monkeypatch):
    folder, _ = world
    usual = OwnEngine.sync
    calls = []

    def breaks(self, policy):
        calls.append(0)
        self.fault = "old weights" if len(calls) > 2 else ""
        return usual(self, policy)

    monkeypatch.setattr(OwnEngine, "sync", breaks)
    with pytest.raises(SyncError, match="old weights"):
        run(folder)
    assert [row["step"] for row in read_jsonl(folder / "run" / "metrics.jsonl")] == [1, 2]


def test_an_engine_that_shares_the_weights_has_nothing_to_certify():
    sampler = engines.build_engine(loaded(), make_rollout())
    assert sampler.sync(CausalPolicy(sampler.loaded.model, temperature=1.0)) is None


def make_rollout():
    from klent.config import TransformersRollout

    return TransformersRollout(max_tokens=4)

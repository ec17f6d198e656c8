"""The vLLM engine over a library that is a copy of the tiny model: what is asked, what is made of the answers."""

import json

import pytest
import torch
from helpers_training import PROMPTS
from tiny import END, TURN_END, tiny_folder, tiny_model, tiny_tokenizer

from klent.config import make_recipe
from klent.errors import ConfigError, ModelError, SyncError
from klent.io.files import read_jsonl
from klent.models.adapter import add_adapter
from klent.models.load import LoadedModel, load_policy
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.transformers_engine import SamplingOptions
from klent.rollout.vllm_engine import VllmEngine, hugging_face_weights
from klent.rollout.vllm_library import Answer, VllmLibrary
from klent.runs import engines
from klent.runs.console import QuietConsole
from klent.runs.train import train


class CopiedModel:
    """A :class:`klent.rollout.vllm_engine.Library`: every completion by itself, from a model of its own."""

    def __init__(self, model=None):
        self.model = model or tiny_model(seed=5)  # other weights than the trainer's, until they are loaded
        self.tokenizer = tiny_tokenizer()
        self.questions = []

    @torch.no_grad()
    def sample(self, questions, options, stop_ids):
        self.questions += questions
        return [
            [
                self._answer(q, torch.Generator().manual_seed(q.seed + k), options, stop_ids)
                for k in range(q.answers)
            ]
            for q in questions
        ]

    def _answer(self, question, generator, options, stop_ids):
        tokens, logp = [], []
        while len(tokens) < question.longest:
            logits = self.model(torch.tensor([[*question.ids, *tokens]])).logits[0, -1].float()
            distribution = (logits / options.temperature).softmax(-1)
            tokens.append(int(torch.multinomial(distribution, 1, generator=generator)))
            logp.append(float(distribution[tokens[-1]].log()))
            text = self.tokenizer.decode(tokens)
            if tokens[-1] in stop_ids or any(stop in text for stop in options.stop):
                return Answer(tokens, logp, "stop")
        return Answer(tokens, logp, "length")

    @torch.no_grad()
    def score(self, rows):
        scored = []
        for prompt, tokens in rows:
            logits = self.model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
            scored.append(logits.log_softmax(-1)[range(len(tokens)), list(tokens)])
        return scored

    def load(self, weights):
        self.model.load_state_dict(dict(weights))


def engine(library=None, **options):
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (END, TURN_END))
    options = SamplingOptions(**{"max_tokens": 30, "temperature": 0.8, **options})
    return VllmEngine(loaded, options, library or CopiedModel(), dtype="float32")


def synced(**options):
    sampler = engine(**options)
    policy = CausalPolicy(sampler.loaded.model, temperature=sampler.options.temperature)
    sampler.sync(policy)
    return sampler


def test_numbers_are_those_of_the_distribution_sampled_and_entropy_is_the_trainers():
    sampler = synced()
    episodes = sampler.generate(PROMPTS, group_size=3, seed=1)
    assert [episode.prompt.id for episode in episodes] == [p.id for p in PROMPTS for _ in range(3)]
    assert len({len(episode.tokens) for episode in episodes}) > 1
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        logits = sampler.loaded.model(ids).logits[0, len(episode.prompt_ids) - 1 : -1].detach().double() / 0.8
        p, logp = logits.softmax(-1), logits.log_softmax(-1)
        taken = logp.gather(1, episode.tokens[:, None])[:, 0]
        assert torch.allclose(episode.logp.double(), taken, atol=1e-4)
        assert torch.allclose(episode.entropy.double(), -(p * logp).sum(-1), atol=1e-4)
        assert torch.allclose(episode.collision.double(), p.square().sum(-1), atol=1e-4)
        assert torch.allclose(episode.collision_logp.double(), (p.square() * logp).sum(-1), atol=1e-4)
        assert episode.rescored


def test_a_completion_depends_on_its_prompt_and_the_seed_alone():
    sampler = synced()
    episodes = sampler.generate(PROMPTS, group_size=3, seed=1)
    again = sampler.generate(PROMPTS[:2], group_size=3, seed=1)
    assert [e.tokens.tolist() for e in again] == [e.tokens.tolist() for e in episodes[:6]]
    other = sampler.generate(PROMPTS[:2], group_size=3, seed=2)
    assert [e.tokens.tolist() for e in other] != [e.tokens.tolist() for e in again]
    seeds = [question.seed for question in sampler.library.questions[-2:]]
    assert abs(seeds[0] - seeds[1]) > 3  # the seeds of a group follow the first, and reach no other group's


def test_ends_and_texts_are_as_the_transformers_engine_has_them():
    sampler = synced(stop=("e",), max_tokens=60)
    episodes = sampler.generate(PROMPTS, group_size=6, seed=3)
    ends = set()
    for episode in episodes:
        written = sampler.loaded.tokenizer.decode(episode.tokens, skip_special_tokens=False)
        assert "e" not in episode.text
        ends.add(
            "token" if episode.tokens[-1] in (END, TURN_END) else "string" if "e" in written else "length"
        )
        assert (episode.finish == "stop") == (episode.tokens[-1] in (END, TURN_END) or "e" in written)
    assert {"token", "string"} <= ends


def test_weights_that_do_not_reach_the_library_stop_the_run():
    sampler = engine()
    sampler.library.load = lambda weights: None
    with pytest.raises(SyncError) as caught:
        sampler.sync(CausalPolicy(sampler.loaded.model, temperature=0.8))
    assert caught.value.cause == "other weights"


def test_an_adapter_is_merged_under_the_names_of_the_base_model():
    pytest.importorskip("peft")
    base = tiny_model()
    names = set(base.state_dict())
    wrapped = add_adapter(base, recipe(lora={"rank": 2}).lora, seed=0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.1)
    sampler = CopiedModel()
    weights = hugging_face_weights(wrapped)
    assert set(weights) == names
    sampler.load(iter(weights.items()))
    ids = torch.tensor([[7, 8, 9, 10]])
    assert torch.allclose(sampler.model(ids).logits, wrapped(input_ids=ids).logits, atol=1e-4)


def test_an_adapter_beside_bfloat16_weights_is_not_rounded_away():
    """An adapter smaller than half a unit of a bfloat16 weight: rounded, the sum would be the base."""
    pytest.importorskip("peft")
    base = tiny_model().to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    wrapped = add_adapter(base, recipe(lora={"rank": 1}).lora, seed=0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.fill_(1e-3)
    moved = {
        name: (weight.float() - before[name].float()).abs().max()
        for name, weight in hugging_face_weights(wrapped).items()
        if weight.dtype == torch.float32
    }
    assert moved
    assert all(0 < float(change) < 1e-3 for change in moved.values())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rollout": {"top_p": 0.9}}, "rollout.top_p: vllm does not report the entropy"),
        ({"rollout": {"top_k": 20}}, "rollout.top_k: vllm does not report the entropy"),
        ({"rollout": {"temperature": 0.005}}, "rollout.temperature: vllm takes 0.01"),
        ({"rollout": {"mixture": {"target": "reference", "alpha": 0.5}}}, "needs the logits of both models"),
        ({"lora": {"rank": 2}, "rollout": {"dtype": "bfloat16"}}, "an adapter that is merged into it"),
        ({"trust_remote_code": True}, "models of its own"),
    ],
)
def test_what_vllm_cannot_do_as_the_trainer_is_refused_with_the_reason(changes, reason):
    with pytest.raises(ConfigError, match=reason.replace(".", r"\.")):
        recipe(**changes)


def test_a_key_of_vllm_is_unknown_to_the_transformers_engine():
    with pytest.raises(ConfigError, match="is not used by a transformers engine, only by a vllm engine"):
        recipe(rollout={"engine": "transformers", "cache_gb": 2})


def test_without_vllm_the_reason_is_given(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"needs vllm.*pip install"):
        VllmLibrary("nowhere", dtype="float32", longest=64, cache_gb=1.0)


def recipe(**changes):
    values = {
        "name": "tiny",
        "model": "model",
        "method": "grpo",
        "task": {"data": "prompts.jsonl"},
        "reward": "reward.py:digits",
        "steps": 3,
        "prompts_per_step": 2,
        "group_size": 3,
        "optimizer": {"lr": 0.01},
        "checkpoint": {"every": 1},
        "eval": None,
    }
    rollout = {"engine": "vllm", "max_tokens": 6, **changes.pop("rollout", {})}
    return make_recipe(values | {"rollout": rollout} | changes)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "model")
    (tmp_path / "reward.py").write_text(
        "def digits(prompts, completions, **columns):\n"
        "    return [sum(c.isdigit() for c in str(text)) for text in completions]\n"
    )
    rows = [{"prompt": f"say {i}"} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        engines, "VllmLibrary", lambda source, **options: CopiedModel(load_policy(source).model.train(False))
    )
    return tmp_path


def run(folder, *, resume=False, **changes):
    made = recipe(**changes)
    return train(made, folder, command="klent train tiny", resume=resume, console=QuietConsole())


def rows_of(folder):
    """What a run measured, but for the clock, and for evidence whose beginning is in the process."""
    left_out = ("time/", "memory/", "sync/")
    return [
        {k: v for k, v in row.items() if not k.startswith(left_out) and "per_second" not in k}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]


def test_a_run_goes_through_it_and_resumes_bit_for_bit(world):
    whole = run(world / "whole")
    rows = list(read_jsonl(whole / "metrics.jsonl"))
    assert all(row["policy/entropy_rescored"] == 1 for row in rows)
    assert all(row["sync/gap"] < 1e-4 for row in rows)
    assert rows[-1]["sync/arrived"] == pytest.approx(1.0, abs=1e-2)
    assert max(row["policy/logp_mismatch"] for row in rows) < 1e-4
    run(world / "parts", steps=2)
    run(world / "parts", resume=True)
    assert rows_of(world / "parts") == rows_of(whole)

"""vLLM itself, in this process: its numbers are the trainer's, weights arrive, and what goes wrong is named.

    make test-vllm VLLM_PYTHON=../vllm/bin/python

Skipped where vllm is not installed. One copy of a small random model serves all tests.
"""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from helpers_training import PROMPTS
from tiny import END, TURN_END, tiny_model, tiny_tokenizer

from klent.errors import SyncError
from klent.models.load import load_policy
from klent.policies.causal_lm.policy import CausalPolicy
from klent.rollout.transformers_engine import SamplingOptions
from klent.rollout.vllm_engine import VllmEngine, hugging_face_weights
from klent.rollout.vllm_library import VllmLibrary

pytest.importorskip(
    "vllm", reason="vllm is not installed; run: make test-vllm VLLM_PYTHON=a Python that has it"
)

STOPS = (END, TURN_END, *range(20, 50))  # many, so that completions end at different lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Heads of 32, the fewest that vLLM's CPU kernels take."""
    path = tmp_path_factory.mktemp("vllm") / "model"
    tiny_model(hidden_size=128, intermediate_size=256, initializer_range=0.1).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def library(folder):
    return VllmLibrary(str(folder), dtype="float32", longest=256, cache_gb=0.05)


@pytest.fixture
def engine(folder, library):
    options = SamplingOptions(max_tokens=24, temperature=0.7)
    loaded = replace(load_policy(str(folder)), stop_ids=STOPS)
    return VllmEngine(loaded, options, library, dtype="float32")


def policy_of(engine) -> CausalPolicy:
    return CausalPolicy(engine.loaded.model, temperature=engine.options.temperature)


def move(engine, seed: int, size: float = 0.02) -> None:
    """An update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in engine.loaded.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


def test_new_weights_arrive_and_are_certified(engine):
    policy = policy_of(engine)
    assert engine.sync(policy).gap < 1e-4
    for seed in range(2):
        move(engine, seed)
        certificate = engine.sync(policy)
        assert certificate.gap_max < 1e-3
        assert certificate.arrived == pytest.approx(1.0, abs=1e-2)


def test_numbers_are_those_of_the_distribution_sampled(engine):
    move(engine, 7)
    engine.sync(policy_of(engine))
    episodes = engine.generate(PROMPTS, group_size=4, seed=1)
    assert len({len(episode.tokens) for episode in episodes}) > 1
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        logits = engine.loaded.model(ids).logits[0, len(episode.prompt_ids) - 1 : -1].detach() / 0.7
        taken = logits.log_softmax(-1).gather(1, episode.tokens[:, None])[:, 0]
        assert torch.allclose(episode.logp, taken, atol=1e-3)
        assert (episode.finish == "stop") == (episode.tokens[-1] in STOPS)
        assert not set(episode.tokens[:-1].tolist()) & set(STOPS)


def test_a_seed_gives_the_same_completions_again_and_another_gives_others(engine):
    engine.sync(policy_of(engine))
    first = [e.tokens.tolist() for e in engine.generate(PROMPTS, group_size=3, seed=5)]
    assert [e.tokens.tolist() for e in engine.generate(PROMPTS, group_size=3, seed=5)] == first
    assert [e.tokens.tolist() for e in engine.generate(PROMPTS, group_size=3, seed=6)] != first
    assert len({str(tokens) for tokens in first[:3]}) > 1


def test_a_stop_string_ends_a_completion(engine):
    engine.options = SamplingOptions(max_tokens=40, temperature=1.0, stop=("e", "a", "1"))
    engine.sync(policy_of(engine))
    for episode in engine.generate(PROMPTS, group_size=6, seed=2):
        written = engine.loaded.tokenizer.decode(episode.tokens, skip_special_tokens=False)
        hits = any(stop in written for stop in engine.options.stop)
        assert not any(stop in episode.text for stop in engine.options.stop)
        assert (episode.finish == "stop") == (hits or bool(episode.tokens[-1] in STOPS))


def test_prompts_that_were_cached_under_older_weights_are_read_again(engine):
    """A prompt of several blocks: without clearing its cache, vLLM would go on from the older keys and values."""
    long = [PROMPTS[0].__class__("long", "2+2=4 and then some more of the same, again and again, " * 3)]
    engine.sync(policy_of(engine))
    engine.generate(long, group_size=2, seed=0)
    move(engine, 11, size=0.1)
    engine.sync(policy_of(engine))
    for episode in engine.generate(long, group_size=2, seed=0):
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        logits = engine.loaded.model(ids).logits[0, len(episode.prompt_ids) - 1 : -1].detach() / 0.7
        taken = logits.log_softmax(-1).gather(1, episode.tokens[:, None])[:, 0]
        assert torch.allclose(episode.logp, taken, atol=1e-3)


def test_writing_into_the_packed_layers_is_found_out(engine, monkeypatch):
    """The trap of a CPU: `load_weights` alone writes into tensors that the kernels no longer read."""
    policy = policy_of(engine)
    engine.sync(policy)
    move(engine, 3)

    def write(weights):
        named = list(hugging_face_weights(engine.loaded.model).items())
        with suppress(
            RuntimeError, AssertionError, ValueError, AttributeError
        ):  # a version that refuses delivers as little
            engine.library.llm.apply_model(lambda model: model.load_weights(iter(named)) and None)

    monkeypatch.setattr(engine.library, "load", write)
    with pytest.raises(SyncError) as caught:
        engine.sync(policy)
    assert caught.value.cause in ("old weights", "other weights")


def test_raw_log_probabilities_at_another_temperature_are_named(engine, monkeypatch):
    engine.sync(policy_of(engine))
    usual = engine.library.sample

    def colder(questions, options, stop_ids):
        return usual(questions, SamplingOptions(options.max_tokens, temperature=0.4), stop_ids)

    monkeypatch.setattr(engine.library, "sample", colder)
    with pytest.raises(SyncError) as caught:
        engine.sync(policy_of(engine))
    assert caught.value.cause == "wrong temperature"
    assert "temperature 0.4" in str(caught.value)

"""What Q-SFT has learnt, sampled: the tilted distribution of two models, exactly, at every token."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import END, TURN_END, VOCABULARY, tiny_model, tiny_tokenizer

from klent.errors import ConfigError
from klent.models.load import LoadedModel
from klent.objectives import qsft_policy
from klent.policies.causal_lm.beside import add_dummy_action
from klent.rollout.transformers_engine import SamplingOptions
from klent.rollout.value_engine import ValueEngine
from klent.streams.prompt import Prompt


def loaded(seed: int, *, dummy: bool = False) -> LoadedModel:
    model = tiny_model(seed)
    if dummy:
        add_dummy_action(model)
    return LoadedModel(model, tiny_tokenizer(), "tiny", (END, TURN_END))


def engine(**options: object) -> ValueEngine:
    value, behaviour = loaded(1, dummy=True), loaded(0)
    return ValueEngine(value, behaviour, SamplingOptions(max_tokens=6), **{"beta": 3.0, **options})


@pytest.mark.parametrize("form", ["ratio", "probability", "logit"])
@pytest.mark.parametrize("least", [0.0, 0.01])
def test_every_token_is_drawn_from_the_tilted_distribution(form, least):
    sampler = engine(form=form, min_behaviour=least)
    prompts = [Prompt("p/0", "go left?"), Prompt("p/1", "on")]
    prompts[1] = replace(prompts[1], prompt="not read", token_ids=[9, 8, 7])  # an episode under way
    episodes = sampler.generate(prompts, group_size=3, seed=1)
    assert len({tuple(episode.tokens.tolist()) for episode in episodes}) > 3
    for episode in episodes:
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        logits, of_data = (
            m.model(input_ids=ids).logits[0].detach() for m in (sampler.loaded, sampler.target.loaded)
        )
        log_p, log_b = (one.log_softmax(-1)[:, : len(VOCABULARY)] for one in (logits, of_data))
        if least:
            log_b = log_b.masked_fill(log_b < math.log(least), -math.inf)
        if form == "logit":
            tilted = (log_b.exp() * (3.0 * logits[:, : len(VOCABULARY)]).exp()).log()
            tilted = tilted - tilted.logsumexp(-1, keepdim=True)
        else:
            tilted = qsft_policy(log_p, log_b, beta=3.0, form=form)
        at = torch.arange(len(episode.tokens)) + len(episode.prompt_ids) - 1
        expected = tilted[at, episode.tokens]
        assert episode.logp is not None
        torch.testing.assert_close(episode.logp, expected, atol=2e-5, rtol=0)
    assert episodes[-1].prompt_ids == [9, 8, 7]


def test_without_a_tilt_it_is_the_model_of_the_data_and_the_dummy_is_never_drawn():
    sampler = engine(beta=0.0, min_behaviour=0.0)
    head = sampler.loaded.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[-1] = 50 * head.weight.mean(0)
    tokens = [e.tokens for e in sampler.generate([Prompt("p/0", "a")], group_size=20, seed=0)]
    assert int(torch.cat(tokens).max()) < len(VOCABULARY)


def test_another_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"temperature is 0\.5: values are read at 1"):
        ValueEngine(loaded(1), loaded(0), SamplingOptions(max_tokens=6, temperature=0.5), beta=1.0)

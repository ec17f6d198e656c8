"""What Q-SFT has learnt, sampled: the tilted distribution of two models, exactly, at every token."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import END, TURN_END, VOCABULARY, tiny_model, tiny_tokenizer

from klent.config import EnvironmentSettings
from klent.errors import ConfigError
from klent.models.load import LoadedModel
from klent.objectives import qsft_policy
from klent.policies.causal_lm.beside import add_dummy_action
from klent.rollout.play import PlayEngine
from klent.rollout.transformers_engine import SamplingOptions
from klent.rollout.value_engine import ValueEngine
from klent.streams.prompt import Prompt
from klent.tasks.starts import EnvironmentTask


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


def test_a_recorded_step_is_not_had_and_the_console_says_why():
    notes: list[str] = []
    sampler = engine(decoding="graph", note=notes.append)
    sampler.generate([Prompt("p/0", "a")], group_size=2, seed=0)
    assert sampler.sampler is None
    (note,) = notes
    assert "step by step from Python (slower, as exact)" in note
    assert "a player of values" in note


def test_another_temperature_is_refused():
    with pytest.raises(ConfigError, match=r"temperature is 0\.5, and the player of values needs 1"):
        ValueEngine(loaded(1), loaded(0), SamplingOptions(max_tokens=6, temperature=0.5), beta=1.0)


COUNTING = """
from klent.environments import Step

class Counting:
    '''Three turns; says more each time, and something else to each start.'''

    def reset(self, row, seed):
        self.turn, self.seed = 0, seed % 5
        return "go" * (1 + self.seed)

    def step(self, action):
        self.turn += 1
        return Step("on " * (self.turn + self.seed), 0.5, done=self.turn == 3)
"""


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counting")
    (folder / "counting.py").write_text(COUNTING)
    task = EnvironmentTask(EnvironmentSettings(env="counting.py:Counting"), base=folder)
    yield task
    task.environments.close()


def player(game: EnvironmentTask) -> PlayEngine:
    """Values, and a model of the data that has another number of layers."""
    value, behaviour = loaded(1, dummy=True), replace(loaded(0), model=tiny_model(0, num_hidden_layers=3))
    value, behaviour = (replace(one, stop_ids=(TURN_END, *range(20, 60))) for one in (value, behaviour))
    turns = ValueEngine(value, behaviour, SamplingOptions(max_tokens=6), beta=3.0)
    return PlayEngine(turns, game.environments, value, max_turns=5, max_tokens=30, turn_tokens=6)


def tokens_read(model, counts: list[int]):
    def count(module, args, given):
        counts.append(given["input_ids"].numel())

    return model.register_forward_pre_hook(count, with_kwargs=True)


def test_neither_model_reads_a_turn_again(game):
    """Counted at the models themselves, of an episode by itself, where nothing is padded."""
    playing = player(game)
    with playing.engine.keeping():
        pass  # the models are asked what they can
    read: dict[str, list[int]] = {"value": [], "behaviour": []}
    models = {"value": playing.engine.loaded.model, "behaviour": playing.engine.target.loaded.model}
    for name, model in models.items():
        tokens_read(model, read[name])
    (episode,) = playing.generate([game.train(1)], group_size=1, seed=0)
    assert episode.turns == 3
    everything = len(episode.prompt_ids) + len(episode.tokens) - 1  # the last was drawn and not read
    assert {name: sum(counts) for name, counts in read.items()} == {
        "value": everything,
        "behaviour": everything,
    }
    written = (
        int(episode.acted.sum()) - episode.turns
    )  # one at a time; the last of a turn is read with the next
    assert episode.prefill == everything - written


def test_values_play_as_they_do_where_each_turn_is_read_from_the_start(game):
    prompts = [game.train(0), game.train(1), game.train(3)]
    kept, reread = player(game), player(game)
    reread.engine.extends = False
    one, other = (playing.generate(prompts, group_size=3, seed=4) for playing in (kept, reread))
    assert len({len(episode.tokens) for episode in one}) > 2
    for mine, theirs in zip(one, other, strict=True):
        assert mine.tokens.tolist() == theirs.tokens.tolist()
        torch.testing.assert_close(mine.logp, theirs.logp, atol=2e-5, rtol=0)
        assert mine.prefill < theirs.prefill
    value, of_data = kept.engine.loaded.model, kept.engine.target.loaded.model
    for episode in one:
        ids = torch.tensor([[*episode.prompt_ids, *episode.tokens.tolist()]])
        log_p, log_b = (
            model(input_ids=ids).logits[0].detach().log_softmax(-1)[:, : len(VOCABULARY)]
            for model in (value, of_data)
        )
        tilted = qsft_policy(log_p, log_b.masked_fill(log_b < math.log(0.01), -math.inf), beta=3.0)
        at = torch.arange(len(episode.tokens)) + len(episode.prompt_ids) - 1
        acted = episode.acted
        expected = tilted[at, episode.tokens][acted]
        torch.testing.assert_close(episode.logp[acted], expected, atol=2e-5, rtol=0)


def test_the_shorter_context_of_the_two_is_the_limit(game):
    value, behaviour = (
        loaded(1, dummy=True),
        replace(loaded(0), model=tiny_model(0, max_position_embeddings=24)),
    )
    turns = ValueEngine(value, behaviour, SamplingOptions(max_tokens=6), beta=3.0)
    playing = PlayEngine(turns, game.environments, value, max_turns=5, max_tokens=30, turn_tokens=6)
    (episode,) = playing.generate([game.train(1)], group_size=1, seed=0)
    assert episode.finish == "length"
    assert len(episode.prompt_ids) + len(episode.tokens) <= 24

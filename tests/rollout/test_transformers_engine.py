"""The engine on a small random model: what it reports is what the model says of what it sampled."""

from dataclasses import replace

import pytest
import torch
from tiny import TURN_END, tiny_model, tiny_tokenizer

from klent.errors import DataError, TooLong
from klent.models.load import LoadedModel
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.streams.prompt import Prompt


def loaded(stop_ids: tuple[int, ...] = (TURN_END,)) -> LoadedModel:
    return LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", stop_ids)


def chat(*texts: str) -> list[Prompt]:
    return [Prompt(f"p/{i}", [{"role": "user", "content": text}]) for i, text in enumerate(texts)]


PROMPTS = chat("1+1", "a much longer question than the others?", "2+3=")


@pytest.fixture(scope="module")
def rollouts():
    engine = TransformersEngine(loaded(), SamplingOptions(max_tokens=20, temperature=0.7))
    return engine.generate(PROMPTS, group_size=5, seed=3)


def test_groups_come_prompt_by_prompt(rollouts):
    assert [r.prompt.id for r in rollouts] == [p.id for p in PROMPTS for _ in range(5)]


def test_reported_numbers_are_those_of_one_unpadded_forward_pass(rollouts):
    """Left padding, the repeated cache and rows that leave change nothing: each row computed alone agrees."""
    model = tiny_model()
    for r in rollouts:
        ids = torch.tensor([r.prompt_ids + r.tokens.tolist()])
        logits = model(input_ids=ids).logits[0, len(r.prompt_ids) - 1 : -1] / 0.7
        logp = logits.log_softmax(dim=-1)
        torch.testing.assert_close(r.logp, logp.gather(1, r.tokens[:, None])[:, 0], atol=2e-5, rtol=0)
        torch.testing.assert_close(r.entropy, -(logp.exp() * logp).sum(-1), atol=2e-5, rtol=0)


def test_a_row_ends_at_its_stop_token_and_its_text_leaves_that_out(rollouts):
    ended = [r for r in rollouts if r.finish == "stop"]
    assert ended
    assert len(ended) < len(rollouts)
    for r in rollouts:
        body = r.tokens[:-1] if r.finish == "stop" else r.tokens
        assert (r.tokens[-1] == TURN_END) == (r.finish == "stop")
        assert not (body == TURN_END).any()
        assert r.text == tiny_tokenizer().decode(body, skip_special_tokens=False)
        assert r.finish == "stop" or len(r.tokens) == 20


@pytest.mark.parametrize("rows", [1, 5, 10])
def test_the_batch_size_does_not_change_what_is_said(rollouts, rows):
    engine = TransformersEngine(loaded(), SamplingOptions(max_tokens=20, temperature=0.7), rows=rows)
    again = engine.generate(PROMPTS, group_size=5, seed=3)
    assert [r.tokens.tolist() for r in again] == [r.tokens.tolist() for r in rollouts]


def test_the_seed_decides(rollouts):
    engine = TransformersEngine(loaded(), SamplingOptions(max_tokens=20, temperature=0.7))
    other = engine.generate(PROMPTS, group_size=5, seed=4)
    assert [r.tokens.tolist() for r in other] != [r.tokens.tolist() for r in rollouts]


def test_several_stop_tokens():
    stops = tuple(range(60))  # a quarter of the vocabulary
    engine = TransformersEngine(loaded(stops), SamplingOptions(max_tokens=40))
    for r in engine.generate(PROMPTS, group_size=4, seed=0):
        assert not any(token in stops for token in r.tokens[:-1].tolist())
        assert (int(r.tokens[-1]) in stops) == (r.finish == "stop")


def test_a_stop_string_ends_the_row_and_is_not_in_the_text():
    plain = TransformersEngine(loaded(()), SamplingOptions(max_tokens=30)).generate(
        PROMPTS, group_size=4, seed=1
    )
    stop = plain[0].text[10:12]
    options = SamplingOptions(max_tokens=30, stop=(stop,))
    for with_stop, without in zip(
        TransformersEngine(loaded(()), options).generate(PROMPTS, group_size=4, seed=1), plain, strict=True
    ):
        assert with_stop.text == without.text.split(stop)[0]
        assert (with_stop.finish == "stop") == (stop in without.text)
        assert with_stop.tokens.tolist() == without.tokens.tolist()[: len(with_stop.tokens)]


def test_truncated_sampling_reports_the_truncated_distribution():
    options = SamplingOptions(max_tokens=8, top_k=1)
    for r in TransformersEngine(loaded(), options).generate(PROMPTS, group_size=2, seed=0):
        assert r.logp.abs().max() < 1e-6
        assert r.entropy.abs().max() < 1e-6


def test_a_prompt_that_leaves_no_room_is_named():
    engine = TransformersEngine(loaded(), SamplingOptions(max_tokens=64))
    with pytest.raises(DataError, match=r"prompt p/0 has \d+ tokens.*context of 512 leaves 448"):
        engine.generate(chat("x" * 500), group_size=1, seed=0)
    (prompt,) = chat("x" * 500)
    with pytest.raises(
        TooLong, match=r"turns of up to 32 tokens .* leaves 480\. .*lower turn_tokens of the game"
    ):
        engine.check(replace(prompt, room=32))


def test_training_mode_is_given_back():
    model = loaded()
    model.model.train()
    TransformersEngine(model, SamplingOptions(max_tokens=2)).generate(PROMPTS, group_size=1, seed=0)
    assert model.model.training

"""Supervised completions come back as the data has them, with the stop token behind."""

import pytest
from tiny import TURN_END, tiny_model, tiny_tokenizer

from klent.errors import DataError
from klent.models.load import LoadedModel
from klent.rollout.dataset_engine import DatasetEngine
from klent.streams.prompt import Prompt

LOADED = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END,))


def prompt(completion: object) -> Prompt:
    return Prompt("rows.jsonl:7", "2+2=", {"completion": completion})


@pytest.mark.parametrize("completion", ["four", [{"role": "assistant", "content": "four"}]])
def test_text_and_conversational_completions_are_the_same(completion):
    (rollout,) = DatasetEngine(LOADED, max_tokens=8).generate([prompt(completion)], group_size=1, seed=0)
    assert rollout.text == "four"
    assert rollout.tokens[-1] == TURN_END
    assert tiny_tokenizer().decode(rollout.tokens[:-1]) == "four"
    assert rollout.logp is None
    assert rollout.entropy is None


def test_a_completion_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(DataError, match=r"rows\.jsonl:7 has 9 tokens, more than rollout.max_tokens=8"):
        DatasetEngine(LOADED, max_tokens=8).generate([prompt("12345678")], group_size=1, seed=0)


def test_a_missing_completion_is_named():
    with pytest.raises(DataError, match=r"rows\.jsonl:7 has no text in its `completion` column"):
        DatasetEngine(LOADED, max_tokens=8).generate([prompt(None)], group_size=1, seed=0)

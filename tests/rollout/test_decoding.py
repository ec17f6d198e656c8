"""Both decoders against a forward pass over each whole row, and the question that chooses between them."""

import os
import subprocess
import sys

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

from klent.errors import ModelError
from klent.policies.causal_lm.model import reading_cache
from klent.rollout import decoding, static
from klent.rollout.decoding import (
    ApartDecoder,
    GroupDecoder,
    PlainDecoder,
    RereadDecoder,
    choose_decoder,
)
from klent.rollout.static import StaticDecoder

PROMPTS = [[7, 11, 13], [9, 8, 7, 6, 5, 4, 21], [30]]
GROUP = 3
DROPS = [
    None,
    [0, 1, 2, 4, 6, 8],
    None,
    [1, 2, 3],
    [2],
    None,
]  # rows that stay after a step, by their index at that step


@torch.no_grad()
def alone(model: torch.nn.Module, row: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([row])).logits[0, -1]


@pytest.mark.parametrize("kind", [PlainDecoder, GroupDecoder, StaticDecoder, ApartDecoder, RereadDecoder])
@torch.no_grad()
def test_every_step_gives_the_logits_of_the_row_alone(kind, monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", 2)  # so that memory has to grow twice
    monkeypatch.setattr(static, "WINDOW", 2)
    model = tiny_model()
    rows = [list(p) for p in PROMPTS for _ in range(GROUP)]
    decoder = kind(model, PROMPTS, group_size=GROUP, pad=0)
    logits = decoder.start()
    generator = torch.Generator().manual_seed(0)
    for kept in DROPS:
        for row, actual in zip(rows, logits, strict=True):
            torch.testing.assert_close(actual, alone(model, row), atol=2e-5, rtol=0)
        token = torch.randint(5, 90, (len(rows),), generator=generator)
        if kept is not None:
            order = decoder.keep(kept)
            assert sorted(order) == kept
            rows, token = [rows[i] for i in order], token[order]
        rows = [[*row, int(t)] for row, t in zip(rows, token, strict=True)]
        logits = decoder.step(token)
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("group_size", "kept"),
    [(1, [1, 2]), (1, [2]), (2, [2, 3, 4, 5]), (2, [0, 1, 4, 5]), (2, [2, 3])],
)
@pytest.mark.parametrize("kind", [GroupDecoder, StaticDecoder])
@torch.no_grad()
def test_whole_groups_that_leave_do_not_mix_up_the_others(kind, group_size, kept):
    """The last rows move into the gaps, and may then be as many as the grid has places, in another order."""
    model = tiny_model()
    rows = [list(p) for p in PROMPTS for _ in range(group_size)]
    decoder = kind(model, PROMPTS, group_size=group_size, pad=0)
    decoder.start()
    order = decoder.keep(kept)
    assert sorted(order) == kept
    rows = [rows[i] for i in order]
    for step in range(2):
        token = torch.arange(len(rows)) + 40 + step
        rows = [[*row, int(t)] for row, t in zip(rows, token, strict=True)]
        for row, actual in zip(rows, decoder.step(token), strict=True):
            torch.testing.assert_close(actual, alone(model, row), atol=2e-5, rtol=0)


def test_a_prompt_that_nobody_answers_is_forgotten():
    decoder = GroupDecoder(tiny_model(), PROMPTS, group_size=GROUP, pad=0)
    with torch.no_grad():
        decoder.start()
        decoder.keep([3, 4, 5])
    assert decoder.cache.bias.shape[0] == 1
    assert decoder.cache.prompts[0][0].shape[0] == 1


def test_the_attention_of_the_model_is_put_back_even_after_an_error():
    model = tiny_model()
    decoder = GroupDecoder(model, PROMPTS, group_size=GROUP, pad=0)
    with torch.no_grad():
        decoder.start()
        with pytest.raises(IndexError):
            decoder.step(torch.full((9,), 10**6))
    assert model.config._attn_implementation == "sdpa"


def test_a_llama_decodes_in_groups():
    assert choose_decoder(tiny_model()) is GroupDecoder


SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_a_window_and_a_capped_score_are_refused(monkeypatch):
    assert choose_decoder(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)).eval()) is PlainDecoder
    assert (
        choose_decoder(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)).eval()) is GroupDecoder
    )
    monkeypatch.setattr(decoding, "attention_window", lambda model: None)  # refused for its cap alone
    config = Gemma2Config(
        **SMALL, sliding_window=4096, attn_logit_softcapping=5.0, attn_implementation="eager"
    )
    assert choose_decoder(Gemma2ForCausalLM(config).eval()) is PlainDecoder


def test_an_attention_that_differs_is_found_out(monkeypatch):
    """The trial is worth something only if a wrong decoder fails it: here the prompt's padding is read."""
    usual = decoding.GroupCache.__init__

    def careless(self, *arguments):
        usual(self, *arguments)
        self.bias.zero_()

    monkeypatch.setattr(decoding.GroupCache, "__init__", careless)
    assert choose_decoder(tiny_model()) is PlainDecoder


def test_a_decoder_that_is_wrong_or_raises_gives_way_to_the_next(monkeypatch):
    """Down to reading every row again; and where that is wrong too, words and no step."""
    model = tiny_model()
    usual = decoding.prefill

    def padding_is_read(model, prompts, *, pad):
        logits, mask, cache = usual(model, prompts, pad=pad)
        return logits, mask | 1, cache

    def no_cache(model, prompts, *, pad):
        raise AttributeError("no layers")

    assert choose_decoder(model, groups=False) is PlainDecoder
    monkeypatch.setattr(decoding, "prefill", padding_is_read)
    assert choose_decoder(model) is ApartDecoder
    monkeypatch.setattr(decoding, "prefill", no_cache)
    assert choose_decoder(model) is RereadDecoder
    forward = model.forward
    model.forward = lambda input_ids, **rest: forward(input_ids=input_ids + len(input_ids) - 1, **rest)
    with pytest.raises(
        ModelError, match="cannot be sampled exactly: the logits of a row depend on the other rows"
    ):
        choose_decoder(model)


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda self, input_ids, past_key_values=None, use_cache=None: None, "past_key_values"),
        (lambda self, input_ids, cache=None, use_cache=None: None, "cache"),  # transformers 5.24
    ],
)
def test_the_cache_goes_by_the_name_that_the_model_has_for_it(forward, name):
    """transformers renames the argument model by model, and removes the old name in 5.40."""
    kind = type("Model", (torch.nn.Module,), {"forward": forward})
    assert reading_cache(kind(), "kept") == {name: "kept", "use_cache": True}
    wrapped = type("Wrapper", (torch.nn.Module,), {"get_base_model": lambda self: kind()})
    assert reading_cache(wrapped(), "kept") == {name: "kept", "use_cache": True}


@pytest.mark.parametrize(
    "set_by_user", [{}, {"MALLOC_ARENA_MAX": "2", "THP_MEM_ALLOC_ENABLE": "0", "OMP_WAIT_POLICY": "ACTIVE"}]
)
def test_the_switches_of_the_process_are_set_unless_the_user_has_set_them(set_by_user):
    code = (
        "import os, sys; from klent.runs.process import prepare_process; prepare_process();"
        "assert 'torch' not in sys.modules;"
        "print(os.environ['THP_MEM_ALLOC_ENABLE'], os.environ['OMP_WAIT_POLICY'])"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "THP_", "OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | set_by_user, capture_output=True, text=True, check=True
    )
    expected = {"THP_MEM_ALLOC_ENABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"} | set_by_user
    assert done.stdout.split() == [expected["THP_MEM_ALLOC_ENABLE"], expected["OMP_WAIT_POLICY"]]

"""A GGUF file says what the folder beside it says, to two readers that klent did not write."""

import json
import types
from pathlib import Path

import pytest
import torch
from tiny import CHAT_TEMPLATE, TEXT, byte_level
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from klent.errors import ModelError
from klent.models import gguf as module
from klent.models.gguf import FILE, refuse_gguf, vocabulary_of
from klent.models.save import save_model

gguf = pytest.importorskip("gguf", reason="klent[gguf] is not installed")

SHAPE = {
    "vocab_size": 304,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 3e-5,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def rope(theta: float) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": theta}


MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=rope(5e3))
    ),
    "llama, a head of its own": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, tie_word_embeddings=False, head_dim=16, rope_parameters=rope(777.0))
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_parameters=rope(2e4))
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SHAPE, tie_word_embeddings=False, head_dim=128, rope_parameters=rope(3e4))
    ),
}


def made(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model, its vectors and biases random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]().eval()
        for value in model.parameters():
            if value.ndim == 1:
                value.data.add_(0.3 * torch.randn_like(value))
    model.generation_config = GenerationConfig(eos_token_id=1)
    return model


def logits(folder: Path, ids: torch.Tensor, **how: object) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)
    with torch.no_grad():
        return model.eval()(ids).logits


IDS = torch.randint(0, 300, (2, 61), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_model_that_the_folder_holds(
    tmp_path: Path, name: str, dtype: str | None
) -> None:
    model = made(name)
    save_model(model, byte_level(), tmp_path / "m", dtype=dtype, gguf="tiny")
    expected, read = logits(tmp_path / "m", IDS), logits(tmp_path / "m", IDS, gguf_file=FILE)
    assert expected.std() > 0.5
    if dtype is None:
        assert torch.equal(read, expected)
    else:  # vectors are written in float32, which holds what was rounded to fewer bits
        torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m" / FILE).tensors}
    assert types == {"F32"} | {"float16": {"F16"}, "bfloat16": {"BF16"}}.get(str(dtype), set())


def test_a_wrong_layout_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_interleaved", lambda weight, heads: weight)
    save_model(made("llama"), byte_level(), tmp_path / "m", gguf="tiny")
    expected, read = logits(tmp_path / "m", IDS), logits(tmp_path / "m", IDS, gguf_file=FILE)
    assert (expected - read).abs().max() > 0.1


def test_the_shape_and_the_vocabulary_are_in_the_file(tmp_path: Path) -> None:
    tokenizer = byte_level("smollm")
    save_model(made("llama, a head of its own"), tokenizer, tmp_path / "m", gguf="tiny")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m" / FILE).fields.items()}
    shape = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.file_type": 0,
        "llama.context_length": 256,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 777.0,
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    assert {name: fields[name] for name in shape} == shape
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == 304
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert [kinds[tokenizer.convert_tokens_to_ids(token)] for token in ("<|im_end|>", "<think>", "a")] == [
        3,
        4,
        1,
    ]
    assert kinds[len(tokenizer) :] == [5] * (304 - len(tokenizer))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in model["merges"]]


@pytest.mark.parametrize("splits", ["gpt-2", "qwen2"])
def test_transformers_reads_the_tokenizer_that_the_folder_holds(tmp_path: Path, splits: str) -> None:
    """But for SmolLM's, whose digits its reader does not take apart; llama.cpp does, by the name in the file."""
    tokenizer = byte_level(splits)
    save_model(made("llama" if splits == "gpt-2" else "qwen2"), tokenizer, tmp_path / "m", gguf="tiny")
    read = AutoTokenizer.from_pretrained(tmp_path / "m", gguf_file=FILE)
    assert read(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    fields = gguf.GGUFReader(tmp_path / "m" / FILE).fields
    special = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "padding")]
    assert special == [1, 0]
    if splits == "qwen2":  # its reader of Llama's takes no special tokens from a file
        assert (read.eos_token_id, read.pad_token_id) == (1, 0)


def test_an_unusual_tokenizer_is_refused() -> None:
    prefixed = byte_level()
    prefixed.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lower = byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    for tokenizer in (prefixed, lower, byte_level(ignore_merges=True)):
        with pytest.raises(ModelError, match=r"not a byte-level BPE .* Leave --gguf out"):
            vocabulary_of(tokenizer, 304)
    composed = byte_level("qwen2")
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    assert vocabulary_of(composed, 304).splits == "qwen2"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            LlamaConfig(
                **SHAPE,
                rope_parameters=rope(1e4)
                | {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            ),
            r"positions are scaled \(llama3\)",
        ),
        (LlamaConfig(**SHAPE, attention_bias=True), r"biases \(attention_bias\)"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "the activation is gelu"),
        (Qwen2Config(**SHAPE, use_sliding_window=True), "within a window"),
        (Qwen3Config(**SHAPE, head_dim=24), "how wide a head is"),
        (GPT2Config(), "klent cannot write gpt2"),
    ],
)
def test_what_a_file_could_not_say_is_refused(config: object, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        refuse_gguf(config, byte_level())


def test_nothing_is_left_of_a_folder_whose_file_is_refused(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=304))
    with pytest.raises(ModelError, match="klent cannot write gpt2"):
        save_model(model, byte_level(), tmp_path / "m", gguf="tiny")
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "importlib", types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    )
    with pytest.raises(ModelError, match=r"pip install 'klent\[gguf\]'"):
        refuse_gguf(LlamaConfig(**SHAPE), byte_level())

"""A model as one GGUF file, for llama.cpp and what is built on it: weights, shape, tokenizer and chat template.

What is written is what two readers agree on: llama.cpp's names and layouts, as transformers reads them back. A model
or a tokenizer for which that is not shown is refused, since a file of the wrong layout loads and says nonsense.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from klent.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

FILE = "model.gguf"
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""``model_type`` of a config -> the architecture of the same name."""

FILE_TYPES = {
    "float32": 0,
    "float16": 1,
    "bfloat16": 32,
}  # llama.cpp's numbers for "all or mostly of this type"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens

_GPT2, _LLAMA3 = "gpt-2", "llama-bpe"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {rf"{_WORDS}|\p{{N}}|{_OTHERS}": "qwen2", rf"{_WORDS}|\p{{N}}{{1,3}}|{_OTHERS}": _LLAMA3}
"""Regular expression by which a tokenizer splits text first -> llama.cpp's name for it."""


class Vocabulary(NamedTuple):
    """Tokens by id, the kind of each, merges in their order, and the name of what splits text before them."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    splits: str


def refuse_gguf(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Refuse what :func:`write_gguf` could not write so that it reads the same.

    Raises:
        ModelError: the package is missing, or the model or its tokenizer is of another kind.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("--gguf needs: pip install 'klent[gguf]'")
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"--gguf: klent cannot write {config.model_type}, only {', '.join(ARCHITECTURES)}. Leave --gguf out, and "
            "convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    if problem := _unheard_of(config):
        raise ModelError(
            f"--gguf: the file cannot express {problem}, so its readers would compute something else. Leave --gguf "
            "out, and convert the folder with llama.cpp's convert_hf_to_gguf.py"
        )
    vocabulary_of(tokenizer, cast("int", config.vocab_size))


def _unheard_of(config: "PretrainedConfig") -> str:
    """What a config says and a file would not; empty if there is nothing."""
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        return f"that positions are scaled ({kind})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "that a part of each head is rotated"
    if getattr(config, "use_sliding_window", False):
        return "that layers attend within a window"
    if config.hidden_act != "silu":
        return f"that the activation is {config.hidden_act}"
    for key in ("attention_bias", "mlp_bias"):
        if getattr(config, key, False):
            return f"that there are biases ({key})"
    usual = {
        "qwen2": config.hidden_size // config.num_attention_heads,
        "qwen3": 128,
    }  # what transformers takes
    width = getattr(config, "head_dim", None)
    return "how wide a head is" if width is not None and usual.get(config.model_type, width) != width else ""


def write_gguf(
    config: "PretrainedConfig",
    weights: "Mapping[str, Tensor]",
    tokenizer: "PreTrainedTokenizerBase",
    file: Path,
    *,
    name: str,
    dtype: str,
) -> None:
    """Write a model as a GGUF file; matrices in ``dtype``, vectors in float32.

    Args:
        config: of the model.
        weights: by the names of transformers, an adapter added up already.
        tokenizer: a byte-level BPE.
        file: where to.
        name: ``general.name``.
        dtype: ``float32``, ``float16`` or ``bfloat16``.

    Raises:
        ModelError: as of :func:`refuse_gguf`, or a weight that has no name in GGUF.
    """
    refuse_gguf(config, tokenizer)
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
    from gguf.quants import quantize

    architecture = str(config.model_type)
    writer = GGUFWriter(str(file), architecture)
    _add_shape(writer, config, name=name, dtype=dtype)
    _add_tokenizer(writer, tokenizer, cast("int", config.vocab_size))
    number = next(number for number, known in MODEL_ARCH_NAMES.items() if known == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    for key, value in _written(config, weights).items():
        if (to := names.get_name(key, try_suffixes=(".weight", ".bias"))) is None:
            raise ModelError(
                f"--gguf: klent knows no GGUF name for the weight {key}. Leave --gguf out, and convert the folder "
                "with llama.cpp's convert_hf_to_gguf.py"
            )
        values = value.float().numpy()
        if values.ndim == 1 or dtype == "float32":
            writer.add_tensor(to, values)
        else:
            kind = GGMLQuantizationType.F16 if dtype == "float16" else GGMLQuantizationType.BF16
            writer.add_tensor(to, quantize(values, kind), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _written(config: "PretrainedConfig", weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The weights in GGUF's layout: no second copy of tied embeddings, and Llama's rotated rows side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    done = {}
    for key, value in weights.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        part = key.split(".")[-2]
        rotated = config.model_type == "llama" and part in heads
        value = value.detach().cpu()
        done[key] = _interleaved(value, heads[part]) if rotated else value
    return done


def _interleaved(weight: "Tensor", heads: int) -> "Tensor":
    """Rows of each head as pairs that rotate together: ``(0, n/2, 1, n/2 + 1, ...)`` of its ``n``."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def _add_shape(writer: "GGUFWriter", config: "PretrainedConfig", *, name: str, dtype: str) -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    vocabulary = vocabulary_of(tokenizer, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.splits)
    writer.add_add_space_prefix(False)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    special: dict[str, Callable[[int], None]] = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for kind, add in special.items():
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None and number < rows:
            add(number)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Vocabulary:
    """The vocabulary of a byte-level BPE, filled up to the rows of the embeddings with tokens that nothing says.

    Raises:
        ModelError: it is another tokenizer, or splits text in a way that has no name.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    values = json.loads(backend.to_str()) if backend is not None else {}
    model = values.get("model") or {}
    splits = _name_of_splits(values.get("pre_tokenizer"))
    whole = bool(model.get("ignore_merges")) == (
        splits == _LLAMA3
    )  # a word that is a token is not merged anew
    composed = values.get("normalizer") in (None, {"type": "NFC"})  # Qwen's, which llama.cpp leaves out
    if not (model.get("type") == "BPE" and splits and whole and composed):
        raise ModelError(
            "--gguf: the tokenizer is not a byte-level BPE that splits text like GPT-2, SmolLM, Llama 3 or Qwen2, so "
            "readers of the file would split text differently. Leave --gguf out, and convert the folder with "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    added = {one["id"]: one for one in values.get("added_tokens", [])}
    by_id = {index: token for token, index in model["vocab"].items()}
    by_id |= {index: one["content"] for index, one in added.items()}
    tokens, kinds = [], []
    for index in range(rows):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        special = index in added and added[index]["special"]
        other = USER_DEFINED if index in added else NORMAL if index in by_id else UNUSED
        kinds.append(CONTROL if special else other)
    return Vocabulary(tokens, kinds, [_merge(pair) for pair in model["merges"]], splits)


def _merge(pair: object) -> str:
    return pair if isinstance(pair, str) else " ".join(cast("list[str]", pair))


def _name_of_splits(pre: object) -> str:
    """llama.cpp's name of what splits text before the merges; empty if it has none here."""
    steps = _steps(pre)
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ""
    own = bool(steps[-1].get("use_regex"))
    if len(steps) == 1:
        return _GPT2 if own else ""
    if len(steps) > 2:
        return ""
    first = steps[0]
    if first.get("type") == "Digits" and first.get("individual_digits") and own:
        return "smollm"
    if (
        first.get("type") == "Split"
        and first.get("behavior") == "Isolated"
        and not own
        and not first["invert"]
    ):
        pattern = first.get("pattern")
        return _SPLITS.get(str(pattern.get("Regex")), "") if isinstance(pattern, dict) else ""
    return ""


def _steps(pre: object) -> list[dict[str, object]]:
    if not isinstance(pre, dict):
        return []
    return cast("list[dict[str, object]]", pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre])

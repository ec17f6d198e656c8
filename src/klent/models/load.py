"""Language models: load one for training, render a prompt for it, save it.

A name is an alias (``klent models ls``), a folder, or a hub id. Whatever is wrong with it is said in plain
words before training starts.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klent.errors import DataError, KlentError, ModelError
from klent.io.folders import whole_folder
from klent.models.locate import download, resolve
from klent.models.pull import KNOWN, ModelInfo, list_models, pull, quiet

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "KNOWN",
    "LoadedModel",
    "ModelInfo",
    "context_length",
    "list_models",
    "load_policy",
    "pull",
    "render_prompt",
    "resolve",
    "save_model",
    "stop_ids",
]

DTYPES = ("float32", "bfloat16", "float16")
LORA_KEYS = ("rank", "alpha", "dropout", "target_modules")
TURN = "klent-turn"  # stands for an answer when a chat template is asked how it ends one


@dataclass(frozen=True)
class LoadedModel:
    """A policy ready to sample and train.

    Attributes:
        model: a transformers causal language model, or peft's wrapper of one, in eval mode. Dropout of the
            base model is 0, so ``train()`` changes no log-prob except through an adapter that has dropout.
        tokenizer: has a pad token.
        source: the folder or hub id that it came from.
        stop_ids: token ids that end a completion, ascending.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    source: str
    stop_ids: tuple[int, ...]


def load_policy(
    name: str,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    lora: Mapping[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Load a causal language model and its tokenizer for sampling and training.

    Dropout of the base model is set to 0: with it, the log-probs of the update would differ from those of the
    sampler and every ratio would be noise. Weights are read from safetensors only, never from a pickle.

    Args:
        name: alias, folder or hub id; see :func:`klent.models.locate.resolve`.
        dtype: of the weights, ``float32``, ``bfloat16`` or ``float16``. float32 is quickest on most CPUs.
        trust_remote_code: allow a model to run the Python code in its folder.
        lora: ``rank``, ``alpha``, ``dropout`` and ``target_modules`` of an adapter to train in place of the
            weights, which are then frozen; None trains every weight.
        gradient_checkpointing: recompute activations in the backward pass. It acts in ``train()`` mode only,
            and in that mode generation has no cache: call ``eval()`` to sample.
        seed: of the adapter's first weights. The global random state is left as it was.

    Returns:
        The model in eval mode on the CPU, with its tokenizer. Nothing is moved to a device.

    Raises:
        ModelError: whatever is wrong with the name, the folder, its files or an option.
    """
    from klent.head.products import use_onednn_linears

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    source = resolve(name)
    folder = source if isinstance(source, Path) else download(source, trust_remote_code=trust_remote_code)
    with quiet(), _plainly(f"cannot load the tokenizer of {name}"):
        tokenizer = _load_tokenizer(folder, trust_remote_code)
    with quiet(), _plainly(f"cannot load the model {name}"):
        model = _load_model(folder, dtype, trust_remote_code)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, but its model has only {rows}"
        )
    stops = stop_ids(model, tokenizer)
    if lora is not None:
        model = _add_adapter(model, lora, seed)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    use_onednn_linears(model)
    return LoadedModel(model.eval(), tokenizer, str(source), stops)


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:  # padding is always masked, so any token of the vocabulary will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _load_model(folder: Path, dtype: str, trust_remote_code: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{folder} holds quantised weights, which cannot be trained; use the full model")
    for part in (config, config.get_text_config()):
        for key, value in part.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(part, key, 0.0)
    loader: Any = AutoModelForCausalLM
    model, report = loader.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        ignore_mismatched_sizes=True,  # refused below, by name
        output_loading_info=True,
    )
    # transformers fills both kinds with random numbers and goes on
    if wrong := sorted(report["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(wrong)} of its weights, such as {wrong[0]}. Copy it again")
    if wrong := sorted(str(entry[0]) for entry in report["mismatched_keys"]):
        raise ModelError(f"{folder} has {len(wrong)} weights of a shape that config.json denies: {wrong[0]}")
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # such a config can be loaded and not saved, which would be found out after training
        old = model.generation_config
        model.generation_config = GenerationConfig(
            eos_token_id=old.eos_token_id, bos_token_id=old.bos_token_id, pad_token_id=old.pad_token_id
        )
    return model


def _add_adapter(model: Any, lora: Mapping[str, Any], seed: int) -> Any:
    import torch

    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ModelError("lora needs peft: pip install 'klent[lora]'") from error
    if unknown := sorted(set(lora) - set(LORA_KEYS)):
        raise ModelError(f"lora has no key {unknown[0]!r}; its keys are {', '.join(LORA_KEYS)}")
    rank = lora.get("rank", 16)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=lora.get("alpha", 2 * rank),
        lora_dropout=lora.get("dropout", 0.0),
        target_modules=lora.get("target_modules", "all-linear"),
    )
    linear = {name.split(".")[-1] for name, part in model.named_modules() if type(part) is torch.nn.Linear}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        reason = f"lora: {_first_line(error)} Linear layers of this model: {', '.join(sorted(linear))}"
        raise ModelError(reason) from error


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | list[dict[str, str]]) -> list[int]:
    """The token ids that the policy sees for a prompt.

    Text is tokenised as it is, with whatever the tokenizer itself puts in front. Messages go through the
    model's chat template, which opens the assistant's turn; where the last message is the assistant's own, it
    is left open to be continued.

    Returns:
        Token ids, at least one. They are not cut to the context length.

    Raises:
        ModelError: messages for a model without a chat template, or ones that its template refuses.
        DataError: a prompt of no tokens.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt).input_ids
    elif not tokenizer.chat_template:
        raise ModelError(
            "the prompt is a list of messages and this model has no chat template. Give the prompt as plain "
            "text, use the instruct version of the model, or put a chat_template.jinja into its folder"
        )
    else:
        import jinja2

        unfinished = bool(prompt) and prompt[-1].get("role") == "assistant"
        try:
            ids = tokenizer.apply_chat_template(
                prompt,
                add_generation_prompt=not unfinished,
                continue_final_message=unfinished,
                tokenize=True,
                return_dict=False,
            )
        except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"the chat template refuses these messages: {_first_line(error)}") from error
    if not ids:
        raise DataError("the prompt is empty: it comes to no token at all")
    return list(ids)


def stop_ids(model: Any, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Tokens that end a completion: the generation config's, the tokenizer's, and the chat's end of turn."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    ids |= {tokenizer.eos_token_id, _turn_end(tokenizer)}
    return tuple(sorted(i for i in ids if i is not None))


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The added token, such as ``<|im_end|>``, that the chat template writes right after an answer."""
    if not tokenizer.chat_template:
        return None
    import jinja2

    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": TURN}]
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    except (jinja2.TemplateError, ValueError, KeyError, TypeError):
        return None
    after = tokenizer(text[text.rfind(TURN) + len(TURN) :], add_special_tokens=False).input_ids
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None


def context_length(model: Any) -> int:
    """Most tokens, prompt and completion together; ``sys.maxsize`` where the model's config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def save_model(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write a plain Hugging Face folder: safetensors, config, tokenizer, chat template. Whole or not at all.

    A LoRA adapter is merged into the written weights, and saved by itself in ``folder/adapter``. The model in
    memory is not changed: its weights stay bit for bit what they were.

    Raises:
        ModelError: the folder cannot be written, such as on a full disk.
    """
    from safetensors import SafetensorError

    adapted = hasattr(model, "peft_config")
    base = model.get_base_model() if adapted else model
    try:
        with quiet(), whole_folder(folder) as made:
            base.save_pretrained(made, state_dict=_merged_weights(base) if adapted else None)
            tokenizer.save_pretrained(made)
            if adapted:
                model.save_pretrained(made / "adapter")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write the model to {folder}: {_first_line(error)}. Nothing half-written is left; free "
            "some space or choose another folder"
        ) from error


def _merged_weights(base: Any) -> "dict[str, Tensor]":
    """Weights with the adapter added to them, under the names that they had before there was an adapter."""
    import torch
    from peft.tuners.lora import LoraLayer

    weights = {
        name.replace(".base_layer.", "."): value
        for name, value in base.state_dict().items()
        if ".lora_" not in name
    }
    layers: list[tuple[str, Any]] = [
        (name, part) for name, part in base.named_modules() if isinstance(part, LoraLayer)
    ]
    with torch.no_grad():
        for name, layer in layers:
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = weight + layer.get_delta_weight("default").to(weight.dtype)
    return weights


@contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Say what went wrong inside a library in one sentence, with what to do where that is known."""
    try:
        yield
    except KlentError:
        raise
    except Exception as error:  # loaders pass on whatever json, safetensors or a model's own code raised
        said = str(error)
        if "trust_remote_code" in said:
            plain = (
                "it brings its own Python code. Read that code; if you trust it, set trust_remote_code: true"
            )
        elif "Unrecognized configuration class" in said:
            plain = "it is not a causal language model"
        elif type(error).__name__ == "SafetensorError":
            plain = f"its weights are damaged ({_first_line(error)}). Copy or pull it again"
        elif "Couldn't instantiate the backend tokenizer" in said:
            plain = "there is no usable tokenizer.json in its folder"
        else:
            plain = _first_line(error)
        raise ModelError(f"{what}: {plain}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__

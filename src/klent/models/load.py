"""Load a language model, its tokenizer and its stop tokens from an alias, a folder or a hub id."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from klent.errors import DataError, KlentError, ModelError, first_line
from klent.kit.text import plural
from klent.models.adapter import LoraSettings, add_adapter
from klent.models.chat import stop_ids
from klent.models.device import find_device
from klent.models.exact import choose_attention, refuse_attention, refuse_noise
from klent.models.locate import download, locate_model
from klent.models.pull import quiet
from klent.models.score_head import (
    is_reward_model,
    new_weights,
    score_head,
    stirred,
    take_one_label,
    take_padding,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
NOISES = ("drop", "jitter", "noise")  # in the keys of configurations


@dataclass(frozen=True)
class LoadedModel:
    """A policy ready to sample and train.

    Attributes:
        model: a transformers causal language model, or peft's wrapper of one, in eval mode. Dropout of the
            base model is 0, so ``train()`` changes no log-prob except through an adapter that has dropout.
        tokenizer: has a pad token.
        source: the folder or hub id that it was loaded from.
        stop_ids: token ids that end a completion, ascending.
        attention: the implementation of the model's attention: ``sdpa``, ``eager``, ``flash`` or ``flex``.
        pretrained_head: whether the folder had the head; of a language model that becomes a reward model it is new.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    source: str
    stop_ids: tuple[int, ...]
    attention: str = "sdpa"
    pretrained_head: bool = True

    @property
    def rows(self) -> int:
        """Token ids that the model can read: the rows of its embedding."""
        return _rows(self.model)

    def check_ids(self, ids: Sequence[int], what: str) -> None:
        """Refuse token ids beyond the embedding; some tokenizers have more tokens than their models.

        Args:
            ids: what the model is to read.
            what: what these tokens are, for the message.

        Raises:
            DataError: with the first such token.
        """
        rows = self.rows
        for token in ids:
            if token >= rows:
                raise DataError(
                    f"{what} contains {self.tokenizer.convert_ids_to_tokens(token)!r}, token {token}, for which "
                    f"the model has no embedding: it has {rows}. Remove it from the text"
                )


def load_policy(
    name: str,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    attention: str = "auto",
    lora: LoraSettings | None = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    device: "torch.device | str | None" = None,
    body: bool = False,
    scores: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer for sampling and training; or a reward model.

    Dropout and jitter of the base model are set to 0: with them, the log-probs of the update would differ from
    those of the sampler and every ratio would be noise. Weights are read from safetensors only, never from a
    pickle.

    Args:
        name: alias, folder or hub id; see :func:`klent.models.locate.locate_model`.
        dtype: of the weights, ``float32``, ``bfloat16`` or ``float16``. float32 is fastest on most CPUs.
        trust_remote_code: allow a model to run the Python code in its folder.
        attention: ``auto`` takes SDPA where it gives the numbers of an eager pass, and eager attention where it
            does not, as with capped scores; ``sdpa``, ``eager``, ``flash`` or ``flex`` takes that, or is refused.
        lora: an adapter to train instead of the weights, which are then frozen; None trains every weight.
        gradient_checkpointing: recompute activations in the backward pass. It acts in ``train()`` mode only,
            and in that mode generation has no cache: call ``eval()`` to sample.
        seed: of the adapter's first weights. The global random state is left as it was.
        device: where the model is moved: a device, ``auto`` (the GPU if there is one) or a name such as
            ``cuda:1``; None leaves it on the CPU.
        body: only the layers are wanted: a folder without a head over the vocabulary, such as a reward model's, is
            taken too, and that head is then random.
        scores: load a reward model (:mod:`klent.models.score_head`), or a language model to become one.

    Returns:
        The model in eval mode on ``device``, with its tokenizer.

    Raises:
        ModelError: the name, the folder, one of its files or an option cannot be used; the message says why.
    """
    import torch

    from klent.head.products import use_onednn_linears

    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    refuse_attention(attention)
    target = find_device(device) if isinstance(device, str) else device
    source = locate_model(name)
    folder = source if isinstance(source, Path) else download(source, trust_remote_code=trust_remote_code)
    with quiet(), _in_one_sentence(f"cannot load the tokenizer of {name}"):
        tokenizer = _load_tokenizer(folder, trust_remote_code)
    with quiet(), _in_one_sentence(f"cannot load the model {name}"):
        model, fresh = _load_model(folder, dtype, trust_remote_code, attention, scores=scores, body=body)
    stops = stop_ids(model, tokenizer)
    _fit_tokenizer(tokenizer, stops, _rows(model), name)
    if scores:
        score_head(model, name)
        take_padding(model, tokenizer, stops, _rows(model))
    base = model
    if lora is not None:
        model = add_adapter(model, lora, seed)
    use_onednn_linears(model)
    if target is not None:
        torch.nn.Module.to(model, target)  # transformers' own refuses no device and only hides its types
    model.eval()
    taken = base.config._attn_implementation or "eager"
    if base.device.type != "meta":  # where there are no numbers to compare
        adapted = " with an adapter on lora.target_modules; name others" if lora is not None else ""
        with quiet(), _in_one_sentence(f"cannot run the model {name}{adapted}"), stirred(base, fresh):
            taken = choose_attention(base, attention)
            refuse_noise(model, name)
    if gradient_checkpointing:
        recompute_activations(model)
    return LoadedModel(model.eval(), tokenizer, str(source), stops, taken, not fresh)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model alone: alias, folder or hub id.

    Raises:
        ModelError: there is none that can be used.
    """
    source = locate_model(name)
    folder = source if isinstance(source, Path) else download(source, trust_remote_code=trust_remote_code)
    with quiet(), _in_one_sentence(f"cannot load the tokenizer of {name}"):
        return _load_tokenizer(folder, trust_remote_code)


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code
    )
    if tokenizer.pad_token_id is None:  # padding is always masked, so any token of the vocabulary will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _rows(model: "PreTrainedModel") -> int:
    return cast("Tensor", model.get_input_embeddings().weight).shape[0]


def _fit_tokenizer(
    tokenizer: "PreTrainedTokenizerBase", stops: tuple[int, ...], rows: int, name: str
) -> None:
    """A tokenizer may have more tokens than the model; those that klent itself uses must have a row."""
    if beyond := [token for token in stops if token >= rows]:
        raise ModelError(
            f"{tokenizer.convert_ids_to_tokens(beyond[0])!r}, token {beyond[0]}, is the stop token of {name}, but "
            f"the model has only {rows} tokens and can never produce it. Use the model's own tokenizer, or correct "
            "eos_token"
        )
    if cast("int", tokenizer.pad_token_id) >= rows:  # always masked, but it is looked up
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(stops[0] if stops else 0)


def _load_model(
    folder: Path, dtype: str, trust_remote_code: bool, attention: str, *, scores: bool, body: bool
) -> "tuple[PreTrainedModel, bool]":
    """The model, and whether its head is new."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{folder} has quantised weights, which cannot be trained; use the same model with full weights"
        )
    _switch_noise_off(config)
    if scores:
        take_one_label(config, folder)
    elif is_reward_model(config) and not body:  # with tied embeddings it would load, and write nonsense
        raise ModelError(
            f"{folder} is a reward model: it scores texts and writes none. Use it as reward: {{model: {folder}}}"
        )
    new = new_weights(config) if scores else set()
    try:
        pair = _read_weights(
            folder, config, dtype, trust_remote_code, "eager" if attention == "eager" else "sdpa", scores
        )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        if attention == "sdpa":
            raise ModelError(
                f"attention: sdpa does not exist for {config.model_type}. Use attention: auto or eager"
            ) from error
        pair = _read_weights(folder, config, dtype, trust_remote_code, "eager", scores)
    model, report = cast("tuple[PreTrainedModel, dict[str, list[str]]]", pair)
    # transformers fills both kinds of weights with random numbers and continues
    head = model.get_output_embeddings() if body else None
    spare = {name for name, module in model.named_modules() if head is not None and module is head}
    lacking = (key for key in report["missing_keys"] if key.rpartition(".")[0] not in spare)
    if missing := sorted(set(lacking) - new):
        raise ModelError(f"{folder} lacks {len(missing)} of its weights, such as {missing[0]}. Copy it again")
    if mismatched := sorted(str(entry[0]) for entry in report["mismatched_keys"]):
        raise ModelError(
            f"{folder} has {plural(len(mismatched), 'weight')} whose shape contradicts config.json, such as "
            f"{mismatched[0]}. Copy it again"
        )
    if not scores:  # what only scores generates nothing
        _make_savable(model)
    return model, bool(new)


def _read_weights(
    folder: Path,
    config: "PretrainedConfig",
    dtype: str,
    trust_remote_code: bool,
    attention: str,
    scores: bool,
) -> object:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return (AutoModelForSequenceClassification if scores else AutoModelForCausalLM).from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        ignore_mismatched_sizes=True,  # refused by the caller, by name
        output_loading_info=True,
    )


def _switch_noise_off(config: "PretrainedConfig") -> None:
    """What usually makes training random; :func:`klent.models.exact.refuse_noise` asks whether anything is left."""
    for section in (config, config.get_text_config()):
        for key, value in section.to_dict().items():
            if any(noise in key for noise in NOISES) and isinstance(value, float):
                setattr(section, key, 0.0)


def recompute_activations(model: "PreTrainedModel") -> None:
    """Keep no activations for the backward pass; transformers renames this on the way to version 6."""
    old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
    enable: Callable[[dict[str, object]], None] = getattr(model, new if hasattr(model, new) else old)
    enable({"use_reentrant": False})


def _make_savable(model: "PreTrainedModel") -> None:
    """Replace a generation config that transformers loads but refuses to save, which is after training."""
    from transformers import GenerationConfig

    loaded = model.generation_config
    if loaded is None:
        return
    try:
        loaded.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig(
            eos_token_id=loaded.eos_token_id,
            bos_token_id=loaded.bos_token_id,
            pad_token_id=loaded.pad_token_id,
        )


@contextmanager
def _in_one_sentence(problem: str) -> Iterator[None]:
    """Say what went wrong inside a library in one sentence, with what to do where that is known."""
    try:
        yield
    except KlentError:
        raise
    except Exception as error:  # loaders raise whatever json, safetensors or a model's own code raised
        raise ModelError(f"{problem}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    message = str(error)
    if "trust_remote_code" in message:
        return "it brings its own Python code. Read that code; if you trust it, set trust_remote_code: true"
    if "Unrecognized configuration class" in message and "SequenceClassification" in message:
        return "transformers has no sequence classification for its architecture. Use another model"
    if "Unrecognized configuration class" in message:
        return "it is not a causal language model"
    if type(error).__name__ == "SafetensorError":
        return f"its weights are damaged ({first_line(error)}). Copy or pull it again"
    if "Couldn't instantiate the backend tokenizer" in message:
        return "there is no usable tokenizer.json in its folder"
    return first_line(error)

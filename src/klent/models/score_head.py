"""A model whose head gives one number, as transformers' sequence classification has it: a reward model's folder.

``config.json`` names an architecture ``...ForSequenceClassification`` with one label; the head is ``score``, a linear
layer without a bias, read at the last token that is not padding. A causal language model can become one: its layers
are taken, its own head is left, and the new one starts at 0.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from klent.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SUFFIX = "ForSequenceClassification"
HEAD = "score"
OFFSET = "klent_score_offset"
"""The key of ``config.json`` that holds what klent adds to every score; transformers reads past it."""


def is_reward_model(config: "PretrainedConfig") -> bool:
    """Whether a folder holds a reward model; else it is taken for a causal language model."""
    return any(name.endswith(SUFFIX) for name in config.architectures or [])


def take_one_label(config: "PretrainedConfig", folder: "Path") -> None:
    """Set a configuration to one label, or refuse what has another head.

    Raises:
        ModelError: a classifier of several labels, or a model that is neither.
    """
    named = ", ".join(config.architectures or []) or "no architecture"
    if is_reward_model(config):
        if config.num_labels != 1:
            raise ModelError(
                f"{folder} is a classifier with {config.num_labels} labels, and a reward model gives one number. "
                "Train one with method: reward_model, or use a folder whose config.json has one label"
            )
    elif not any("CausalLM" in name or "LMHead" in name for name in config.architectures or ["CausalLM"]):
        raise ModelError(
            f"{folder} ({named}) is neither a reward model ({SUFFIX}, one label) nor a causal language model"
        )
    config.num_labels = 1


def new_weights(config: "PretrainedConfig") -> set[str]:
    """The weights that a folder need not have: of a language model, those of the head that it gets."""
    return set() if is_reward_model(config) else {f"{HEAD}.weight"}


def score_head(model: "PreTrainedModel", folder: object) -> "nn.Linear":
    """The head of a reward model.

    Raises:
        ModelError: it has none, or its weights are not finite.
    """
    from torch import nn

    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(
            f"{folder} has no score head: a reward model reads one number from the last hidden state, under the "
            f"name `{HEAD}`. Encoders and other classifiers cannot be used"
        )
    if not head.weight.isfinite().all():
        raise ModelError(
            f"the score head of {folder} has weights that are not finite (NaN). Take another checkpoint"
        )
    return head


@contextmanager
def stirred(model: "PreTrainedModel", fresh: bool) -> Iterator[None]:
    """Within this block a new head gives numbers, so that what is asked of the layers shows; afterwards 0."""
    import torch

    head = cast("nn.Linear", getattr(model, HEAD)) if fresh else None
    with torch.no_grad():
        if head is not None:
            head.weight.copy_(torch.arange(head.in_features, device=head.weight.device).cos()[None])
        try:
            yield
        finally:
            if head is not None:
                head.weight.zero_()


def take_padding(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", stops: Sequence[int], rows: int
) -> None:
    """Give a model a padding token that no text ends with: transformers reads the score in front of padding.

    A reward model that names one keeps it: that is where its score was trained to be read.

    Raises:
        ModelError: every token may end a text.
    """
    config = model.config.get_text_config()
    if is_reward_model(model.config) and config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        return
    template = str(tokenizer.chat_template or "")
    special = [cast("int", tokenizer.pad_token_id), *sorted(tokenizer.added_tokens_decoder)]
    if tokenizer.unk_token_id is not None:
        special.append(cast("int", tokenizer.unk_token_id))
    used = {*stops, tokenizer.eos_token_id, tokenizer.bos_token_id}
    for token in special:
        name = str(tokenizer.convert_ids_to_tokens(token))
        if token not in used and token < rows and name not in template:
            tokenizer.pad_token = name
            model.config.pad_token_id = token
            config.pad_token_id = token
            return
    raise ModelError(
        "the tokenizer has no token that is only for padding: each of its special tokens may end a text, and "
        "transformers would read the score before it. Add a padding token to the tokenizer"
    )


def offset_of(model: "PreTrainedModel") -> float:
    """What klent adds to every score of this model."""
    return float(getattr(model.config, OFFSET, 0.0) or 0.0)


def score_alone(model: "PreTrainedModel", ids: Sequence[int]) -> "Tensor":
    """A row's score as transformers gives it, without klent's offset: the witness of every other way."""
    import torch

    with torch.no_grad():
        row = torch.tensor([list(ids)], device=model.device)
        output = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
        return cast("Tensor", output.logits).float().flatten()

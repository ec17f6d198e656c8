"""What a model reads and where it stops: rendered prompts, stop tokens, context length."""

import sys
from typing import TYPE_CHECKING

from klent.errors import DataError, ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TURN = "klent-turn"  # an answer's text when a chat template is asked how it ends an answer


def render_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str | list[dict[str, str]]) -> list[int]:
    """The token ids that the policy sees for a prompt.

    Text is tokenised as it is, with the prefix that the tokenizer itself adds. Messages go through the
    model's chat template, which opens the assistant's turn; if the last message is the assistant's own, it is
    left open to be continued.

    Returns:
        Token ids, at least one. They are not cut to the context length.

    Raises:
        ModelError: messages for a model without a chat template, or messages that its template refuses.
        DataError: a prompt of no tokens.
    """
    ids = tokenizer(prompt).input_ids if isinstance(prompt, str) else _render_messages(tokenizer, prompt)
    if not ids:
        raise DataError("the prompt is empty: it tokenizes to nothing")
    return list(ids)


def _render_messages(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> list[int]:
    if not tokenizer.chat_template:
        raise ModelError(
            "the prompt is a list of messages, but this model has no chat template. Give the prompt as plain "
            "text, use the instruct version of the model, or put a chat_template.jinja into its folder"
        )
    import jinja2

    unfinished = bool(messages) and messages[-1].get("role") == "assistant"
    try:
        ids = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not unfinished,
            continue_final_message=unfinished,
            tokenize=True,
            return_dict=False,
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the chat template refuses these messages: {first_line(error)}") from error
    return list(ids)


def stop_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
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
    ids: list[int] = tokenizer(text[text.rfind(TURN) + len(TURN) :], add_special_tokens=False).input_ids
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def context_length(model: "PreTrainedModel") -> int:
    """Most tokens, prompt and completion together; ``sys.maxsize`` if the model's config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

"""What a model reads and where it stops: rendered prompts, stop tokens, context length."""

import datetime
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from klent.errors import DataError, ModelError, first_line
from klent.streams.prompt import Messages, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TURN = "klent-turn"  # an answer's text when a chat template is asked how it ends an answer


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: str | Messages, template: Mapping[str, object] | None = None
) -> list[int]:
    """The token ids that the policy sees for a prompt.

    Text is tokenised as it is, with the prefix that the tokenizer itself adds, unless the text has it
    already; what the tokenizer would append is left out. Messages go through the model's chat template, which
    opens the assistant's turn; if the last message is the assistant's own, it is left open to be continued.

    Args:
        tokenizer: the model's.
        prompt: text or messages.
        template: what the chat template is given beside the messages; see :class:`klent.streams.prompt.Prompt`.

    Returns:
        Token ids, at least one. They are not cut to the context length.

    Raises:
        ModelError: messages for a model without a chat template, or messages that its template refuses or
            rewrites.
        DataError: a prompt of no tokens.
    """
    if isinstance(prompt, str):
        ids = _text_ids(tokenizer, prompt)
    else:
        ids = encode(tokenizer, render_messages(tokenizer, prompt, template))
    if not ids:
        raise DataError("the prompt is empty; give it some text")
    return ids


def unheard_tools(
    tokenizer: "PreTrainedTokenizerBase", prompt: str | Messages, template: Mapping[str, object]
) -> bool:
    """Whether a prompt comes with tools that the model's chat template says nothing of."""
    if isinstance(prompt, str) or not template.get("tools"):
        return False
    without = {name: value for name, value in template.items() if name != "tools"}
    return render_messages(tokenizer, prompt, template) == render_messages(tokenizer, prompt, without)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of text that is complete: nothing is put before or behind it."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def render_messages(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    template: Mapping[str, object] | None = None,
    *,
    whole: bool = False,
) -> str:
    """Messages as text: with the assistant's turn open, or a ``whole`` conversation that nothing follows.

    Raises:
        ModelError: there is no chat template, it refuses the messages, or it does not continue a last message
            of the assistant from where it ends.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the prompt is a list of messages, but this model has no chat template. Give the prompt as plain "
            "text, use the instruct version of the model, or put a chat_template.jinja into its folder"
        )
    unfinished = not whole and bool(messages) and messages[-1].get("role") == "assistant"
    if any(isinstance(message.get("content"), list) for message in messages) and not _reads_parts(tokenizer):
        messages = [{**message, "content": text_of(message.get("content"))} for message in messages]
    text = _apply(tokenizer, messages, template, opened=not whole and not unfinished, continued=unfinished)
    if unfinished and len(messages) > 1:
        _check_continued(text, messages, _apply(tokenizer, messages[:-1], template, opened=True))
    return text


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Messages,
    template: Mapping[str, object] | None,
    *,
    opened: bool = False,
    continued: bool = False,
) -> str:
    import jinja2

    arguments: dict[str, Any] = dict(template or {})
    if (clock := arguments.pop("clock", None)) is not None:
        arguments["strftime_now"] = datetime.datetime.fromisoformat(str(clock)).strftime
    try:
        text = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=opened,
            continue_final_message=continued,
            tokenize=False,
            **arguments,
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the chat template refuses these messages: {first_line(error)}") from error
    return str(text)


def _check_continued(text: str, messages: Messages, opened: str) -> None:
    """Refuse a rendering in which a begun answer does not follow the opening of the assistant's turn."""
    begun = text_of(messages[-1].get("content")).strip()
    head = text[: text.rindex(begun)].rstrip() if begun in text else None
    start = opened.rstrip()
    # a template may open the turn with the tag that the begun answer repeats
    if head is None or not (text.startswith(start) and start.startswith(head)):
        raise ModelError(
            "the prompt ends with an assistant's message, and the chat template rewrites it, so the model could not "
            f"continue it: {text[-80:]!r} for {begun[-40:]!r}. End the prompt with a user message, set arguments of "
            "the template in task.template (such as enable_thinking), or give the prompt as text"
        )


def _reads_parts(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template reads content in parts as it reads the same text."""
    plain = [{"role": "user", "content": TURN}]
    parts = [{"role": "user", "content": [{"type": "text", "text": TURN}]}]
    try:
        return _apply(tokenizer, plain, None) == _apply(tokenizer, parts, None)
    except ModelError:
        return False


def _text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a text to be continued: the tokenizer's prefix once, and nothing behind."""
    full, plain = list(tokenizer(text).input_ids), encode(tokenizer, text)
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            prefix = full[:start]
            return plain if plain[:start] == prefix else prefix + plain
    return full


def reads_clock(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template writes today's date into a prompt."""
    return "strftime_now" in str(tokenizer.chat_template or "")


def stop_ids(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Tokens that end a completion: the generation config's, the tokenizer's, and the chat's end of turn."""
    generation = getattr(model, "generation_config", None)  # a reward model generates nothing, and has none
    configured = generation.eos_token_id if generation is not None else None
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    ids |= {tokenizer.eos_token_id, turn_end(tokenizer)}
    return tuple(sorted(i for i in ids if i is not None))


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The added token, such as ``<|im_end|>``, that the chat template writes right after an answer."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": TURN}]
    try:
        text = _apply(tokenizer, chat, None)
    except ModelError:
        return None
    ids = encode(tokenizer, text[text.rfind(TURN) + len(TURN) :])
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def context_length(model: "PreTrainedModel") -> int:
    """Most tokens, prompt and completion together; ``sys.maxsize`` if the model's config sets no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

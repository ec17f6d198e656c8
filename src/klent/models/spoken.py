"""What an environment says, as tokens: none of it becomes a control token, and nothing before it is written again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from klent.errors import DataError, ModelError
from klent.models.chat import TURN, encode, render_messages, render_prompt, turn_end
from klent.streams.prompt import Messages, text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Mapping[str, object] | None
_LIKE_CONTROL = re.compile(r"[<\[].+[>\]]", re.DOTALL)


def opening_ids(
    tokenizer: "PreTrainedTokenizerBase", opening: str | Messages, template: Template = None
) -> list[int]:
    """The tokens of an opening, as :func:`klent.models.chat.render_prompt` gives them; its text is text.

    Where the opening holds the name of a control token, such as ``<|im_end|>``, it is read as its letters.

    Raises:
        DataError, ModelError: an opening that cannot be rendered.
    """
    control = _control(tokenizer)
    if isinstance(opening, str):
        if control is None or not control.search(opening):
            return render_prompt(tokenizer, opening)
        return [*_prefix(tokenizer), *plain_ids(tokenizer, opening)]
    if not _holds_control(opening, control):
        return render_prompt(tokenizer, opening, template)
    marked, said = _marked(opening)
    return list(_joined(tokenizer, render_messages(tokenizer, marked, template), said))


def reply_ids(
    tokenizer: "PreTrainedTokenizerBase",
    opening: str | Messages,
    reply: str | Messages,
    template: Template = None,
    *,
    ended: bool,
) -> list[int]:
    """The tokens between a turn of the policy and its next one: what the environment said, and what opens the turn.

    Behind an opening of plain text that is the text itself. Behind messages it is whatever the chat template
    writes between an answer and the next generation prompt.

    Args:
        tokenizer: the model's.
        opening: what the episode began with.
        reply: text, which behind messages is a message of the user; or messages.
        template: what the chat template is given beside the messages.
        ended: whether the policy wrote the token that ends its turn; otherwise the template's stands here.

    Raises:
        DataError, ModelError: a reply that cannot be rendered.
    """
    if isinstance(opening, str):
        text = reply if isinstance(reply, str) else "\n".join(text_of(m.get("content")) for m in reply)
        return plain_ids(tokenizer, text)
    messages: Messages = [{"role": "user", "content": reply}] if isinstance(reply, str) else list(reply)
    said: Sequence[tuple[str, str]] = ()
    if _holds_control(messages, _control(tokenizer)):
        messages, said = _marked(messages)
    turn = _unique(TURN, [*opening, *messages])
    begun = opening[-1] if opening[-1].get("role") == "assistant" else {"role": "assistant"}
    answer = {**begun, "content": text_of(begun.get("content")) + turn}
    before = opening[:-1] if begun is opening[-1] else opening
    text = render_messages(tokenizer, [*before, answer, *messages], template)
    if turn not in text:
        raise ModelError(
            "the chat template does not write the policy's turn, so no turn can follow it. Use a model with another "
            "template"
        )
    rest = text[text.rindex(turn) + len(turn) :]
    end = turn_end(tokenizer)
    if ended and end is not None:
        rest = rest.removeprefix(str(tokenizer.convert_ids_to_tokens(end)))
    return list(_joined(tokenizer, rest, said))


def plain_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of a text in which nothing is a control token: the name of one is read as its letters."""
    control = _control(tokenizer)
    if control is None or not control.search(text):
        return encode(tokenizer, text)
    ids: list[int] = []
    start = 0
    for found in control.finditer(text):  # cut behind its first letter, so that no piece holds a whole name
        cut = found.start() + 1
        ids += plain_ids(tokenizer, text[start:cut])
        start = cut
    return ids + plain_ids(tokenizer, text[start:])


def _control(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    """Finds the names of control tokens: special ones, and others in brackets such as ``<think>``."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if len(token.content) > 1]
    names = {t.content for t in added if t.special or _LIKE_CONTROL.fullmatch(t.content)}
    names |= {name for name in map(str, tokenizer.all_special_tokens) if len(name) > 1}
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _holds_control(messages: Messages, control: re.Pattern[str] | None) -> bool:
    """Whether a message's content holds the name of a control token.

    Raises:
        DataError: another field of a message does; only content can be read as letters.
    """
    if control is None:
        return False
    for message in messages:
        for name, value in message.items():
            if name != "content" and control.search(str(value)):
                raise DataError(
                    f"a message's {name!r} contains the name of a control token, {str(value)[:80]!r}, which only "
                    "content may. Remove it"
                )
    return any(control.search(text_of(message.get("content"))) for message in messages)


def _marked(messages: Messages) -> tuple[Messages, list[tuple[str, str]]]:
    """Messages with a mark in place of each content, and what each mark stands for."""
    marks = [
        (_unique(f"klent-said-{i}-", messages), text_of(m.get("content"))) for i, m in enumerate(messages)
    ]
    marked = [{**message, "content": mark} for message, (mark, _) in zip(messages, marks, strict=True)]
    return marked, marks


def _joined(
    tokenizer: "PreTrainedTokenizerBase", text: str, said: Sequence[tuple[str, str]]
) -> Iterator[int]:
    """Tokens of a rendering: control tokens where the template wrote them, letters where the environment did."""
    for mark, content in said:
        if text.count(mark) != 1:
            raise DataError(
                "the chat template does not write each message exactly once, so tokens cannot be assigned to "
                "messages. Use a model with another template"
            )
        before, _, text = text.partition(mark)
        yield from encode(tokenizer, before)
        yield from plain_ids(tokenizer, content)
    yield from encode(tokenizer, text)


def _unique(stem: str, messages: Messages) -> str:
    """A text that no message holds."""
    contents = [text_of(message.get("content")) for message in messages]
    mark = stem
    while any(mark in content for content in contents):
        mark += "x"
    return mark


def _prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer itself puts before a text."""
    full, plain = render_prompt(tokenizer, "a"), encode(tokenizer, "a")
    return full[: len(full) - len(plain)]

"""Rows of preferences: where the prompt ends and two answers to it begin, in each of the field's layouts.

Datasets write a pair as ``prompt``, ``chosen`` and ``rejected``; as two whole conversations or texts that begin
alike, whose shared beginning is the prompt; or as a prompt that both answers repeat.
"""

import re

from klent.errors import DataError
from klent.streams.prompt import Messages, text_of
from klent.tasks.lines import Row
from klent.tasks.messages import checked_completion, checked_prompt

SIDES = ("chosen", "rejected")
_TURN = re.compile(r"(?:^|\n)\s*Assistant:")  # how transcripts of plain text open an answer
_LAST_SPACE = re.compile(r"\s+\S*\Z")
_ASKING = ("system", "developer", "user")

Answer = str | Messages
Split = tuple[Answer, Answer, Answer]
"""A prompt and the two answers to it."""


def split_pair(row: Row, column: str, where: str) -> Row:
    """The row with a prompt under ``column``, and two answers that do not repeat it.

    Of whole texts the prompt ends behind the last ``Assistant:`` that both have, or before the last space that
    both have, so that no word is cut; of whole conversations it ends before the first message that differs.

    Args:
        row: of the data; one without both answers is returned as it is.
        column: that of the prompt.
        where: of the row, for errors.

    Raises:
        DataError: answers that are equal, empty or of two kinds, or whose prompt cannot be told from them.

    >>> row = {"chosen": "Human: 2+2? Assistant: 4", "rejected": "Human: 2+2? Assistant: 5"}
    >>> split_pair(row, "prompt", "pairs.jsonl:1")
    {'chosen': ' 4', 'rejected': ' 5', 'prompt': 'Human: 2+2? Assistant:'}
    """
    if any(row.get(side) is None for side in SIDES):
        return dict(row)
    chosen, rejected = (checked_completion(row[side], f"{where}: {side!r}") for side in SIDES)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(
            f"{where}: one of 'chosen' and 'rejected' is text and the other messages; write both in the same form"
        )
    if chosen == rejected:
        raise DataError(
            f"{where}: 'chosen' and 'rejected' are the same, so neither is preferred. Remove that line"
        )
    given = row.get(column)
    if given is None and column != "prompt":
        return dict(row)  # the caller says that the column is missing
    asked = None if given is None else checked_prompt(given, f"{where}: {column!r}")
    found = _split(asked, chosen, rejected, where)
    for side, answer in zip(SIDES, found[1:], strict=True):
        if _is_empty(answer):
            raise DataError(
                f"{where}: {side!r} has no answer after the prompt; write one or remove that line"
            )
    return {**row, "chosen": found[1], "rejected": found[2], column: found[0]}


def _split(asked: Answer | None, chosen: Answer, rejected: Answer, where: str) -> Split:
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _split_text(asked, chosen, rejected, where)
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    return _split_messages(asked, chosen, rejected, where)


def _split_text(asked: Answer | None, chosen: str, rejected: str, where: str) -> Split:
    if asked is None:
        cut = _cut(chosen, rejected)
        if not chosen[:cut].strip():
            raise DataError(
                f"{where}: no 'prompt', and 'chosen' and 'rejected' share no beginning that could be one "
                f"({chosen[:20]!r}, {rejected[:20]!r}). Add a column 'prompt', or name yours in task.prompt_column"
            )
        return chosen[:cut], chosen[cut:], rejected[cut:]
    if isinstance(asked, str) and chosen.startswith(asked) and rejected.startswith(asked):
        return asked, chosen[len(asked) :], rejected[len(asked) :]
    return asked, chosen, rejected


def _cut(chosen: str, rejected: str) -> int:
    """Where the prompt of two whole texts ends: a place at which a tokenizer cuts, too."""
    pairs = zip(chosen, rejected, strict=False)
    least = min(len(chosen), len(rejected))
    shared = chosen[: next((i for i, (a, b) in enumerate(pairs) if a != b), least)]
    turns = [match.end() for match in _TURN.finditer(shared)]
    if turns:
        return turns[-1]
    space = _LAST_SPACE.search(shared)
    return space.start() if space else 0


def _split_messages(asked: Answer | None, chosen: Messages, rejected: Messages, where: str) -> Split:
    if asked is not None:
        first, second = _repeats(asked, chosen), _repeats(asked, rejected)
        if first is not None and second is not None and chosen[:first] == rejected[:second]:
            return chosen[:first], chosen[first:], rejected[second:]
        if first or second or chosen[0]["role"] in _ASKING or rejected[0]["role"] in _ASKING:
            raise DataError(
                f"{where}: 'prompt' is not how both 'chosen' and 'rejected' begin, which are whole "
                "conversations. Leave 'prompt' out, or keep in both only what the assistant answered"
            )
        return asked, chosen, rejected
    pairs = zip(chosen, rejected, strict=False)
    cut_at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1)
    differ = [answer[cut_at]["role"] for answer in (chosen, rejected)]
    if cut_at == 0:
        raise DataError(
            f"{where}: no 'prompt', and 'chosen' and 'rejected' begin with different messages. Add a column "
            "'prompt', or begin both with the same messages"
        )
    if differ != ["assistant", "assistant"]:
        other = next(role for role in differ if role != "assistant")
        raise DataError(
            f"{where}: 'chosen' and 'rejected' differ first in a message of role {other!r}: they do not answer "
            "one prompt. Only what the assistant says may differ"
        )
    return chosen[:cut_at], chosen[cut_at:], rejected[cut_at:]


def _repeats(asked: Answer, answer: Messages) -> int | None:
    """How many messages at the beginning of a conversation are the prompt; None if it does not begin so."""
    if isinstance(asked, str):
        users = [i for i, message in enumerate(answer) if message["role"] == "user"]
        texts = [text_of(answer[i].get("content")).strip() for i in users]
        return users[texts.index(asked.strip())] + 1 if asked.strip() in texts else None
    return len(asked) if answer[: len(asked)] == asked and len(answer) > len(asked) else None


def _is_empty(answer: Answer) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    spoken = [message for message in answer if message["role"] == "assistant"]
    return not any(text_of(message.get("content")).strip() or message.get("tool_calls") for message in spoken)

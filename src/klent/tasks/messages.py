"""Messages and tools of a data row, checked, each mistake with its place."""

import json
from typing import cast

from klent.errors import DataError
from klent.kit.names import nearest
from klent.streams.prompt import Messages, text_of

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment")


def checked_prompt(value: object, where: str) -> str | Messages:
    """Text, or messages of text; anything else is refused with its place.

    Every field of a message is kept for the chat template; fields that are null are left out.
    """
    if isinstance(value, str):
        if not value.strip():
            raise DataError(f"{where} is empty. Fill it in, or remove the row")
        return value
    if not isinstance(value, list):
        raise DataError(f"{where} must be text or a list of messages, not {type(value).__name__}")
    if not value:
        raise DataError(f"{where} is an empty list of messages. Fill it in, or remove the row")
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value, 1)]


def checked_completion(value: object, where: str, *, silent: bool = False) -> str | Messages:
    """What a prompt is answered with: text, or messages of known roles, the last one the assistant's.

    ``silent``: an assistant may say nothing, as a player may who passes a turn.
    """
    messages = checked_prompt(value, where)
    if isinstance(messages, str):
        return messages
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in ROLES:
            raise DataError(
                f"{where}, message {number}: unknown role {role!r}{nearest(role, ROLES)}; roles are "
                f"{', '.join(ROLES)}"
            )
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where} ends with a message of role {messages[-1]['role']!r}: only an assistant's message can "
            "be trained. Remove it"
        )
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and not silent and not _says_something(message):
            raise DataError(
                f"{where}, message {number}: the assistant's message is empty, so only the end of its turn would be "
                "trained. Write its answer, or remove the row"
            )
    return messages


def _says_something(message: dict[str, object]) -> bool:
    """Whether a message has text, or calls of tools, reasoning or another field that a template may write."""
    fields = {name: value for name, value in message.items() if name not in ("role", "name", "content")}
    return bool(text_of(message["content"]).strip() or any(fields.values()))


def checked_said(value: object, *, opening: bool) -> str | Messages:
    """What an environment says: text, which may be empty behind the opening, or messages that are not the policy's.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, str) and (value.strip() or not opening):
        return value
    messages = checked_prompt(value, "its opening" if opening else "what it said")
    for message in messages if isinstance(messages, list) else []:
        role = message["role"]
        if role not in ROLES or (role == "assistant" and not opening):
            own = (
                "which is the policy's own" if role == "assistant" else f"which is none of {', '.join(ROLES)}"
            )
            raise DataError(f"said a message of role {role!r}, {own}")
    return messages


def checked_tools(value: object, where: str) -> list[dict[str, object]]:
    """Tools as the chat template takes them: a list of JSON schemas, which may be written as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not valid JSON: {error.msg} at column {error.colno}; write a list of schemas"
            ) from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where} must be a list of JSON schemas, one per tool")
    return value


def _message(message: object, where: str) -> dict[str, object]:
    """A message with a role and with content, or with calls of tools in place of content."""
    fields = {k: v for k, v in message.items() if v is not None} if isinstance(message, dict) else {}
    content = fields.get("content", "" if fields.get("tool_calls") else None)
    if not isinstance(fields.get("role"), str) or not (isinstance(content, str) or _is_parts(content)):
        raise DataError(
            f'{where}: expected {{"role": ..., "content": ...}} with text in both (content may be a list of '
            f'{{"type": "text", "text": ...}}), not {json.dumps(message, default=str)[:80]}'
        )
    return {**cast(dict[str, object], fields), "content": content}


def _is_parts(content: object) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        )
    )

"""ShareGPT's layout, ``conversations: [{from: human, value: ...}, ...]``, as messages."""

from klent.errors import DataError
from klent.kit.names import nearest
from klent.tasks.lines import Row

COLUMN = "conversations"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Who speaks in a conversation -> the role of a message."""


def with_messages(row: Row, where: str) -> Row:
    """The row with ``messages`` in place of ``conversations``; one without a conversation is returned as it is.

    A text in a column ``system`` becomes the first message, unless the conversation begins with one of the system.

    Raises:
        DataError: a turn without a speaker that is known, or without text.

    >>> with_messages({"conversations": [{"from": "human", "value": "2+2?"}], "answer": "4"}, "f:1")
    {'answer': '4', 'messages': [{'role': 'user', 'content': '2+2?'}]}
    """
    turns = row.get(COLUMN)
    if turns is None:
        return row
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{where}: {COLUMN!r} must be a list of turns, not {type(turns).__name__ if turns else 'empty'}"
        )
    messages = [_message(turn, f"{where}: {COLUMN!r}, turn {number}") for number, turn in enumerate(turns, 1)]
    rest = {name: value for name, value in row.items() if name != COLUMN}
    system = rest.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
        del rest["system"]
    return {**rest, "messages": messages}


def _message(turn: object, where: str) -> dict[str, object]:
    """A turn as a message; one that is a message already stays as it is, for the checks of messages."""
    if isinstance(turn, dict) and "from" not in turn and "role" in turn:
        return turn
    speaker = turn.get("from") if isinstance(turn, dict) else None
    said = turn.get("value") if isinstance(turn, dict) else None
    if not isinstance(speaker, str) or not isinstance(said, str):
        raise DataError(f'{where}: each turn must be {{"from": "human", "value": "text"}}')
    if speaker not in ROLES:
        known = ", ".join(ROLES)
        raise DataError(f"{where}: unknown speaker {speaker!r}{nearest(speaker, ROLES)}; there are {known}")
    return {"role": ROLES[speaker], "content": said}

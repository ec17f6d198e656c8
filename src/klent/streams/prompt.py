"""The prompt: what the policy is asked, and what a reward may look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

#: a chat: each message has ``role`` and ``content`` (text, or parts of text), and may have ``tool_calls``,
#: ``reasoning_content``, ``name``, ... which only a chat template reads
Messages: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """One problem.

    Attributes:
        id: stable and unique within its task, such as ``chain_sum/17`` or ``prompts.jsonl:12``.
        prompt: text, or messages with ``role`` and ``content``, as the data had it.
        columns: every other column by name (``answer``, ``solution``, ...), passed on to rewards.
        token_ids: what the policy reads, where that is known already: an episode under way. None = ``prompt``
            as the model's template renders it.
        read: how many of ``token_ids``, from the first, an engine may have kept the keys and values of.
        room: the longest answer where it is shorter than the engine's own, tokens.
        number: which of a call's rows of random numbers its answer is drawn with; None = by its place.
        template: what the chat template is given beside the messages: ``tools``, arguments such as
            ``enable_thinking``, and ``clock``, the day that it takes for today.
    """

    id: str
    prompt: str | Messages
    columns: dict[str, Any] = field(default_factory=dict)
    token_ids: list[int] | None = None
    read: int = 0
    room: int | None = None
    number: int | None = None
    template: Mapping[str, object] = field(default_factory=dict)

    def drawn_at(self, place: int) -> int:
        """Which of a call's rows of random numbers its answers are drawn with, at this place among the prompts."""
        return place if self.number is None else self.number


def text_of(content: object) -> str:
    """A message's content as text; parts are joined.

    >>> text_of([{"type": "text", "text": "2 + "}, {"type": "text", "text": "2"}])
    '2 + 2'
    """
    if isinstance(content, list):
        return "".join(text_of(part.get("text") if isinstance(part, dict) else part) for part in content)
    return "" if content is None else str(content)

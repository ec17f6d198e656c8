"""The prompt, and what a task is."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """One problem: what the policy is asked, and what a reward may look at.

    Attributes:
        id: stable and unique within its task, such as ``chain_sum/17`` or ``prompts.jsonl:12``.
        prompt: text, or messages with ``role`` and ``content``, as the data had it.
        columns: every other column by name (``answer``, ``solution``, ...), passed on to rewards.
    """

    id: str
    prompt: str | list[dict[str, str]]
    columns: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A source of problems whose order is a function of the position alone: a resumed run needs no replay."""

    @property
    def name(self) -> str: ...

    def train(self, position: int) -> Prompt:
        """The training prompt at a position 0, 1, 2, ...; never one of the held-out prompts."""
        ...

    def heldout(self, count: int) -> list[Prompt]:
        """Distinct prompts that :meth:`train` never returns, the same at every call; data may have fewer."""
        ...

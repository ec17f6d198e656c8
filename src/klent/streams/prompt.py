"""The prompt: what the policy is asked, and what a reward may look at."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One problem.

    Attributes:
        id: stable and unique within its task, such as ``chain_sum/17`` or ``prompts.jsonl:12``.
        prompt: text, or messages with ``role`` and ``content``, as the data had it.
        columns: every other column by name (``answer``, ``solution``, ...), passed on to rewards.
        token_ids: what the policy reads, where that is known already: an episode under way. None = ``prompt``
            as the model's template renders it.
    """

    id: str
    prompt: str | list[dict[str, str]]
    columns: dict[str, Any] = field(default_factory=dict)
    token_ids: list[int] | None = None

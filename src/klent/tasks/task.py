"""What a task is."""

from collections.abc import Callable
from typing import Protocol

from klent.streams.prompt import Prompt
from klent.tasks.pool import EnvironmentPool


class Task(Protocol):
    """A source of problems whose order is a function of the position alone: a resumed run needs no replay."""

    environments: EnvironmentPool | None
    """What its prompts are the openings of; None where a prompt is answered once."""

    @property
    def name(self) -> str: ...

    def train(self, position: int) -> Prompt:
        """The training prompt at a position 0, 1, 2, ...; never one of the held-out prompts."""
        ...

    def fit(self, train: Callable[[Prompt], None] | None, heldout: Callable[[Prompt], None]) -> int:
        """Try prompts before a run starts, those of training unless ``train`` is None.

        Returns:
            How many were left out as too long, where the task may do so.
        """
        ...

    def heldout(self, count: int) -> list[Prompt]:
        """Distinct prompts that :meth:`train` never returns, the same at every call; data may have fewer."""
        ...

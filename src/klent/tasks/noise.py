"""Noise as a task: prompts that ask for nothing, for a policy that begins from noise of its own."""

from collections.abc import Callable

from klent.config import NoiseSettings
from klent.streams.prompt import Prompt
from klent.tasks.pool import EnvironmentPool


class NoiseTask:
    """Ever new draws, and others held out; a :class:`klent.tasks.task.Task`.

    The noise itself is the engine's, from the step's seed: a prompt only names a group of episodes.

    Args:
        section: how many coordinates.
    """

    name = "noise"

    def __init__(self, section: NoiseSettings) -> None:
        self.environments: EnvironmentPool | None = None
        self.size = section.noise

    def train(self, position: int) -> Prompt:
        """The group at a position."""
        return self._prompt(f"{self.name}/{position}")

    def heldout(self, count: int) -> list[Prompt]:
        """So many groups of other names."""
        return [self._prompt(f"{self.name}/heldout/{index}") for index in range(count)]

    def fit(self, train: Callable[[Prompt], None] | None, heldout: Callable[[Prompt], None]) -> int:
        """Whether the engine takes such noise; nothing is left out."""
        (train or heldout)(self.train(0))
        return 0

    def _prompt(self, id: str) -> Prompt:
        return Prompt(id, f"noise of {self.size} coordinates", {"noise": self.size})

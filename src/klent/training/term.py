"""One function of a recipe, ready to be called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from klent.config.binding import resolve, streams_of


@dataclass(frozen=True)
class Term:
    """A function of klent.objectives (or the user's) with its settings.

    Attributes:
        function: what is called.
        settings: its hyper-parameters; a thermostat may change one from step to step.
        streams: names of the data it reads.
    """

    function: Callable[..., Any]
    settings: dict[str, Any]
    streams: frozenset[str]

    @classmethod
    def named(cls, name: str, settings: Mapping[str, Any] | None) -> "Term":
        """The term that a recipe writes as ``name: settings``."""
        function = resolve(name)
        return cls(function, dict(settings or {}), frozenset(streams_of(function)))

    def __call__(self, streams: Mapping[str, Any]) -> Any:
        return self.function(**{name: streams[name] for name in self.streams}, **self.settings)

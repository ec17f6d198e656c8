"""What is recorded of a robot: the settings of ``klent collect``."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from klent.config.base import Count, NonNegative, PositiveInt, Settings
from klent.config.yaml_text import parse_overrides
from klent.errors import ConfigError
from klent.kit.names import nearest


class CollectionSettings(Settings):
    """Segments of episodes that noisy scripted policies play, each labelled by what it was worth."""

    task: str
    """``drawer-open`` or another task of MetaWorld; ``reach`` needs nothing installed."""
    segments: PositiveInt = 2500
    """Recorded in all, one of each episode."""
    length: PositiveInt = 64
    """Steps of a segment."""
    behaviours: Annotated[tuple[NonNegative | Literal["random"], ...], Field(strict=False, min_length=1)] = (
        0.3,
    )
    """Noise on the scripted policy's actions, standard deviations; or ``random``, noise alone. Each segment's is
    one of them, drawn at random."""
    branches: Count = 0
    """Actions of a segment after which the behaviour policy is played again, for PPL's expected label; a divisor
    of ``length``."""
    continuations: PositiveInt = 1
    """How often after each of them."""
    shard: PositiveInt = 25
    """Segments in a file; what a killed collection loses at most, for each worker."""
    seed: Count = 0
    """Decides everything random."""

    @model_validator(mode="after")
    def _check(self) -> "CollectionSettings":
        if 0 in self.behaviours:
            raise ValueError(
                "behaviours: with noise 0 an action has no density; set a small number, such as 0.1"
            )
        if self.branches and self.length % self.branches:
            raise ValueError(f"branches ({self.branches}) must divide length ({self.length}) evenly")
        return self


def read_collection(overrides: Sequence[str]) -> CollectionSettings:
    """The settings written as ``KEY=VALUE``.

    Raises:
        ConfigError: with each key that is wrong, and why.

    Example:
        >>> read_collection(["task=reach", "behaviours=[0.1, random]"]).behaviours
        (0.1, 'random')
    """
    try:
        return CollectionSettings.model_validate(parse_overrides(overrides, source="klent collect").values)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(_in_words(problem["loc"], problem["msg"]) for problem in error.errors())
        ) from error


def _in_words(path: tuple[int | str, ...], message: str) -> str:
    """One problem: the key, what is wrong with it, and what to do."""
    keys = CollectionSettings.model_fields
    name = str(path[0]) if path else ""
    if name and name not in keys:
        return f"{name}: there is no such setting{nearest(name, keys)}; there are {', '.join(keys)}"
    if message == "Field required":
        return f"{name} is missing; set {name}=drawer-open, or another"
    words = message.removeprefix("Value error, ").replace("Input should", "should")
    return f"{name}: {words}" if name else words

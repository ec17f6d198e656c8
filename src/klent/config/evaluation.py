"""Sections about rewards and held-out problems: what scores completions, and when accuracy is measured."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from klent.config.base import Arguments, Count, NonNegative, Positive, PositiveInt, Settings
from klent.config.rewards import by_name, parse_rewards


class Reward(Settings):
    """One reward; the reward of a completion is the weighted sum of all."""

    fn: str
    """Name of a shipped reward, or `path/to/file.py:function`."""
    weight: float = 1.0
    """Weight in the sum."""
    timeout: Positive = 10.0
    """Seconds allowed per call; a completion that takes longer is unscorable."""
    settings: Arguments = Field(default_factory=dict)
    """More arguments of the function, e.g. {same: number} of empo."""


Rewards = Annotated[tuple[Reward, ...], Field(strict=False)]


def list_rewards(value: object) -> object:
    """Every way to write rewards as a list of them in full; what is not a reward is left to pydantic."""
    if value is None or (isinstance(value, tuple) and all(isinstance(item, Reward) for item in value)):
        return value
    parse_rewards(value, Path())  # refuses unknown names and wrong weights, with the reason
    if isinstance(value, dict) and "fn" not in value:
        return [by_name(name, setting) for name, setting in value.items()]
    items = value if isinstance(value, list | tuple) else [value]
    return [{"fn": item} if isinstance(item, str) else item for item in items]


class EarlyStop(Settings):
    """Ends a run when a held-out signal that needs no labels stops improving; `final/` is the best model."""

    signal: Literal["kept", "agreement", "entropy"] = "kept"
    """Fraction of answers equal to the vote before training, fraction that agree, or (falling) entropy."""
    patience: PositiveInt = 2
    """Stop after this many evaluations in a row without improvement."""
    margin: NonNegative = 0.0
    """Smallest change that counts as improvement."""


class Eval(Settings):
    """Held-out problems, solved before and after training."""

    problems: PositiveInt = 64
    """How many held-out problems."""
    samples: PositiveInt = 2
    """Completions per problem."""
    every: Count = 0
    """Steps between evaluations during training; 0 = none."""
    reward: Rewards | None = None
    """What tells right from wrong, where the recipe's own reward does not; null = the recipe's reward."""
    temperatures: Annotated[tuple[NonNegative, ...], Field(strict=False)] = ()
    """Measure accuracy at these sampling temperatures too; 0 = greedy."""
    same: str | None = None
    """Which answers count as equal, as in `empo`: measures the accuracy of a majority vote; null = off."""
    logits: bool = False
    """Measure the skewness of the logits too, on the sampled answers."""
    early_stop: EarlyStop | None = None
    """End the run when a held-out signal that needs no labels stops improving; null = run every step."""

    @field_validator("reward", mode="before")
    @classmethod
    def _list_rewards(cls, value: object) -> object:
        return list_rewards(value)


class Limits(Settings):
    """When to abort a failing run."""

    unscorable_steps: PositiveInt = 3
    """Steps in a row in which no completion could be scored."""
    nonfinite_steps: PositiveInt = 3
    """Steps in a row whose loss or gradient was not finite."""

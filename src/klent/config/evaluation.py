"""Sections about rewards and held-out problems: what scores completions, and when held-out ones are measured."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from klent.config.base import Count, NonNegative, PositiveInt, Settings
from klent.config.rewards import Reward, parse_rewards
from klent.config.task import PlaySettings

Rewards = Annotated[tuple[Reward, ...], Field(strict=False)]


def list_rewards(value: object) -> tuple[Reward, ...] | None:
    """Every way to write rewards as a list of them in full."""
    return None if value is None else parse_rewards(value)


class EarlyStop(Settings):
    """Ends a run when a held-out signal stops improving; `final/` is the best model."""

    signal: Literal["kept", "agreement", "entropy", "loss"] = "kept"
    """Share of answers equal to the vote before training, share that agree; falling: entropy, or SFT's loss."""
    patience: PositiveInt = 2
    """Stop after this many evaluations in a row without improvement."""
    margin: NonNegative = 0.0
    """Smallest change that counts as improvement."""


class Eval(Settings):
    """Held-out problems, solved before and after training; of a data set that is replayed, also their loss."""

    problems: PositiveInt = 64
    """How many held-out problems."""
    samples: PositiveInt = 2
    """Completions per problem."""
    every: Count = 0
    """Steps between evaluations during training; 0 = none."""
    reward: Rewards | None = None
    """What scores held-out answers, where the recipe's own reward should not; null = the recipe's reward."""
    play: PlaySettings | None = None
    """Game in which the policy of task.trajectories is judged, by its return on held-out starts; null = none."""
    temperatures: Annotated[tuple[NonNegative, ...], Field(strict=False)] = ()
    """Measure the reward at these sampling temperatures too; 0 = greedy."""
    same: str | None = None
    """Which answers count as equal, as in `empo`: measures the accuracy of a majority vote; null = off."""
    logits: bool = False
    """Measure the skewness of the logits too, on the sampled answers."""
    early_stop: EarlyStop | None = None
    """End the run when a held-out signal stops improving; null = run every step."""

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

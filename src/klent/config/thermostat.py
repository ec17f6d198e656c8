"""The section `thermostat`: an entropy or a band to hold, and what is adjusted to hold it."""

from typing import Literal

from pydantic import model_validator

from klent.config.base import NonNegative, Positive, PositiveInt, Settings
from klent.kit.text import plural

#: the defaults of each `thermostat.steer`; a bonus is changed by addition, the others by a factor
STEERED: dict[str, dict[str, float]] = {
    "bonus": {"gain": 2.0, "integral": 0.05, "derivative": 2.0, "start": 0.0, "low": -0.5, "high": 1.0},
    "clip_high": {"gain": 1.0, "integral": 0.3, "derivative": 1.0, "start": 0.2, "low": 0.02, "high": 5.0},
    "kl_cov_fraction": {
        "gain": 2.0,
        "integral": 0.5,
        "derivative": 2.0,
        "start": 2e-3,
        "low": 2e-5,
        "high": 1.0,
    },
    "temperature": {"gain": 0.1, "integral": 0.1, "derivative": 0.0, "start": 1.0, "low": 0.3, "high": 3.0},
    "sign": {"gain": 0.0, "integral": 0.0, "derivative": 0.0, "start": 0.0, "low": -1.0, "high": 1.0},
}


class EntropyTarget(Settings):
    """The entropy that a thermostat aims at, nats per token: a number, `fraction`, or a ramp."""

    value: Positive | None = None
    """The same at every step; `target: 0.5` is short for `target: {value: 0.5}`."""
    fraction: Positive | None = None
    """This fraction of the entropy at the first step."""
    start: Positive | None = None
    """Linear ramp: the target at the first step ..."""
    end: Positive | None = None
    """... and from step `steps` on."""
    steps: PositiveInt | None = None
    """Length of the ramp, training steps."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return {"value": value} if isinstance(value, int | float) else value

    @property
    def complete(self) -> bool:
        """Whether it is one of the three, and all of it."""
        keys = self.model_dump(exclude_none=True).keys()
        return keys in ({"value"}, {"fraction"}, {"start", "end", "steps"})

    def at(self, step: int, initial: float) -> float:
        """The entropy to aim at in a step, from 1, nats; ``initial`` is the first step's.

        >>> [EntropyTarget(start=2.0, end=1.0, steps=3).at(step, 0.0) for step in (1, 2, 3, 9)]
        [2.0, 1.5, 1.0, 1.0]
        """
        if self.value is not None:
            return self.value
        if self.fraction is not None:
            return self.fraction * initial
        assert self.start is not None
        assert self.end is not None
        assert self.steps is not None
        done = min((step - 1) / max(self.steps - 1, 1), 1.0)
        return self.start + done * (self.end - self.start)

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:g} nats"
        if self.fraction is not None:
            return f"{self.fraction:g} of the first step's entropy"
        return f"{self.start:g} to {self.end:g} nats over {plural(self.steps or 0, 'step')}"


class EntropyBand(Settings):
    """The entropies between which a thermostat leaves the policy alone; each edge is what a target may be."""

    low: EntropyTarget
    """Lower edge: a number, {fraction:} or {start:, end:, steps:}."""
    high: EntropyTarget
    """Upper edge, likewise."""


class Thermostat(Settings):
    """Holds the policy's entropy at a target, from above and from below, or with `steer: sign` in a band.

    The defaults of `gain` to `high` are those of `steer: bonus`; another `steer` has its own, in `STEERED`.
    """

    target: EntropyTarget | None = None
    """Nats per token: a number, {fraction: of the first step's entropy} or {start:, end:, steps:}."""
    band: EntropyBand | None = None
    """In place of a target with `steer: sign`: {low:, high:}, each a number, {fraction:} or a ramp."""
    steer: Literal["bonus", "clip_high", "kl_cov_fraction", "temperature", "sign"] = "bonus"
    """What it adjusts: an exact entropy term's coefficient, what it names, or the advantages trained on."""
    gain: NonNegative = 2.0
    """Proportional gain: response to the present error, log(target / entropy)."""
    integral: NonNegative = 0.05
    """Integral gain, per step: removes an error that persists."""
    derivative: NonNegative = 2.0
    """Derivative gain: response to the entropy change of one update; brakes before the target is passed."""
    start: float = 0.0
    """Value at the first step."""
    low: float = -0.5
    """Smallest value; a negative bonus minimises entropy."""
    high: float = 1.0
    """Largest value."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = {key: item for key, item in value.items() if item is not None}
        return STEERED.get(str(value.get("steer", "bonus")), {}) | given

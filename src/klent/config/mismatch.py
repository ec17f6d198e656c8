"""The section `rollout.mismatch`: weights for a sampler whose numbers are not the trainer's."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from klent.config.base import Fraction, Settings


class Bounds(NamedTuple):
    """How a mode weighs: as of :func:`klent.objectives.importance_weight`."""

    ratio: Literal["token", "sequence"]
    outside: Literal["truncate", "drop"]
    low: float
    high: float


MODES: dict[str, Bounds] = {
    "truncate": Bounds("token", "truncate", 0.0, 2.0),
    "mask_token": Bounds("token", "drop", 0.0, 2.0),
    "mask_sequence": Bounds("sequence", "drop", 0.0, 3.0),
    "icepop": Bounds("token", "drop", 0.5, 5.0),
}
"""Each mode with its own bounds, which a recipe may set."""


class Mismatch(Settings):
    """Importance weights trainer/sampler on every term, KL terms included; short: `mismatch: icepop`."""

    mode: Literal["truncate", "mask_token", "mask_sequence", "icepop"] = "truncate"
    """A ratio beyond its bounds: the bound itself (`truncate`), or the token or the sequence is left out."""
    low: Fraction | None = None
    """Smallest ratio; null = 0.5 with icepop, else 0."""
    high: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio; null = 2 per token, 3 per sequence, 5 with icepop."""

    @property
    def bounds(self) -> Bounds:
        """The mode's, with those that are set."""
        usual = MODES[self.mode]
        low = usual.low if self.low is None else self.low
        return usual._replace(low=low, high=usual.high if self.high is None else self.high)

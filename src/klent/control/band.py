"""The thermostat that steers by sign: advantages of one sign alone are trained on while entropy is out of its band.

    H > high    positive advantages alone: what was rewarded is sharpened, and entropy falls
    H < low     negative advantages alone: what failed gives up its probability to the rest, and entropy rises
    between     all of them

It answers in the step that it measures: the completions are sampled, their entropy is known, and the advantages
are yet to be estimated. So it needs no gains, and remembers nothing but the first step's entropy.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from klent.config import EntropyBand, Thermostat
from klent.control.organ import Organ, StepRecord
from klent.streams.batch import Batch

Sign = Literal[-1, 0, 1]
"""Of the advantages that are trained on; 0 = all of them."""


class SignControl(Organ):
    """Holds the policy's entropy in a band by the sign of the advantages that are trained on.

    Args:
        settings: the recipe's section, with ``steer: sign``.
        train_on: told before each update which advantages it trains on.

    Attributes:
        initial: the first step's entropy, nats, of which a band may be a fraction; a checkpoint holds it.
    """

    name = "thermostat"

    def __init__(self, settings: Thermostat, train_on: Callable[[Sign], None]) -> None:
        assert settings.band is not None  # the recipe's checks see to it
        self.band: EntropyBand = settings.band
        self.train_on = train_on
        self.initial: float | None = None
        self.step = 0
        self.row: dict[str, float] = {}

    def before_step(self, number: int) -> None:
        """Remember which step it is: the band may move."""
        self.step = number

    def after_rollout(self, batch: Batch) -> None:
        """Choose the advantages of this step by the entropy that it was sampled with; see :meth:`read`."""
        sampling = batch.at_sampling
        assert sampling is not None  # the recipe's checks see to it
        self.row = self.read(self.step, float(sampling.entropy[batch.mask].mean()))

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """What :meth:`read` said of this step."""
        return self.row

    def read(self, step: int, entropy: float) -> dict[str, float]:
        """Set which advantages a step trains on.

        Args:
            step: the training step, from 1.
            entropy: its mean over the step's tokens, nats; where it is not finite all are trained on.

        Returns:
            ``thermostat/low`` and ``thermostat/high``, the band's edges, ``thermostat/error``, how far the
            entropy has to go to the band, nats, and ``thermostat/value``: 1 where positive advantages alone
            are trained on, -1 where negative ones, 0 where all.
        """
        if self.initial is None and math.isfinite(entropy):
            self.initial = entropy
        initial = self.initial or entropy
        low, high = self.band.low.at(step, initial), self.band.high.at(step, initial)
        sign: Sign = 0
        if math.isfinite(entropy):
            sign = 1 if entropy > high else -1 if entropy < low else 0
        self.train_on(sign)
        nearest = high if sign == 1 else low if sign == -1 else entropy
        return {
            "thermostat/low": low,
            "thermostat/high": high,
            "thermostat/error": nearest - entropy,
            "thermostat/value": float(sign),
        }

    def state_dict(self) -> dict[str, object]:
        """The first step's entropy."""
        return {"initial": self.initial}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The first step's entropy."""
        initial = state["initial"]
        self.initial = None if initial is None else float(str(initial))

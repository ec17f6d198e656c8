"""The thermostat: after each step it looks at the policy's entropy, and sets one number for the next step.

    H    ← H_expected + SMOOTHING·(measured - H_expected)         what the noise of new prompts is averaged out of
    H'   = H + the update's own change of entropy             expected of the next step
    e    = log(target / H'),  within ±2
    u    = gain·e - derivative·log(H' / H) + I,               I ← I + integral·e, unless it waits
    value = start + u,  or  start·exp(u) where the number is turned by a factor;   within [low, high]

The update's own change is measured on the very tokens that it was made from, so it has none of the sampling
noise, and it is known a step before the next completions are. Without it the answer would come late: Adam
goes on with the last ten steps' gradients whatever the next one says. The error is a logarithm because
entropy decays in proportion to itself: half the target is as far off as twice the target, and the gains hold
at any target. It works from both sides: above the target the value falls below where it started.

The integral waits (anti-windup) while the updates are on their way to end the error, and at a bound that the
error pushes against: the answer to a long way must not outlast it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from klent.config import Thermostat
from klent.control.band import SignControl
from klent.control.organ import Organ, StepRecord
from klent.training.objective import Objective

LARGEST_ERROR = 2.0  # a factor of 7; beyond it the answer does not grow
PATIENCE = 500  # steps; an update that would end the error within so many needs no integral
SMOOTHING = 0.6  # weight of a step's measured entropy, against what the steps before it predict


@dataclass
class State:
    """What a thermostat remembers, and what a checkpoint therefore holds."""

    value: float
    integral: float = 0.0
    expected: float | None = None  # nats, of the next step
    initial: float | None = None  # nats, the first step's entropy


class Controller(Organ):
    """A PID controller of the policy's entropy.

    Args:
        settings: the recipe's section, every default filled in.
        turn: sets the number that is steered.
    """

    name = "thermostat"

    def __init__(self, settings: Thermostat, turn: Callable[[float], None]) -> None:
        self.settings: Any = settings
        self.turn = turn
        self.by_factor = settings.steer != "bonus"
        self.state = State(value=settings.start)

    def before_step(self, number: int) -> None:
        """Set the number for the step that is about to begin."""
        self.turn(self.state.value)

    def after_update(self, step: StepRecord) -> dict[str, float]:
        """Learn the step's entropy; see :meth:`read`."""
        return self.read(step.number, step.row["policy/entropy"], step.row["policy/entropy_delta"])

    def state_dict(self) -> dict[str, object]:
        """The controller's memory."""
        return dict(vars(self.state))

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The controller's memory."""
        self.state = State(**state)  # type: ignore[arg-type]

    def read(self, step: int, entropy: float, change: float) -> dict[str, float]:
        """Learn a step's entropy; the value changes for the next step.

        Args:
            step: the training step, from 1.
            entropy: its mean over the step's tokens, nats; where it is not finite the value stays.
            change: what the step's update did to it, measured on the same tokens before and after, nats.

        Returns:
            ``thermostat/target`` and ``thermostat/error`` (target - entropy), nats, and ``thermostat/value``,
            the one that this step had.
        """
        state = self.state
        if state.initial is None and math.isfinite(entropy):
            state.initial = entropy
        target = self.settings.target.at(step, state.initial or entropy)
        row = {
            "thermostat/target": target,
            "thermostat/error": target - entropy,
            "thermostat/value": state.value,
        }
        if math.isfinite(entropy) and math.isfinite(change):
            expected = entropy if state.expected is None else state.expected
            now = expected + SMOOTHING * (entropy - expected)
            state.expected = max(now + change, 0.0)
            self._answer(target, now, state.expected)
        return row

    def _answer(self, target: float, entropy: float, expected: float) -> None:
        options, state = self.settings, self.state
        least = target * math.exp(-LARGEST_ERROR)  # a logarithm takes nothing below 0
        entropy, expected = max(entropy, least), max(expected, least)
        error = max(math.log(target / expected), -LARGEST_ERROR)
        rate = math.log(expected / entropy)
        now = options.gain * error - options.derivative * rate
        on_its_way = PATIENCE * rate * error > error**2
        integral = state.integral + (0.0 if on_its_way else options.integral * error)
        wanted = self._shape(now + integral)
        state.value = min(max(wanted, options.low), options.high)
        if (wanted - state.value) * error <= 0:  # not held at the bound that the error pushes against
            state.integral = integral

    def _shape(self, answer: float) -> float:
        start: float = self.settings.start
        return start * math.exp(answer) if self.by_factor else start + answer


def build_thermostat(
    settings: Thermostat, objective: Objective, set_temperature: Callable[[float], None]
) -> Organ:
    """The organ that a recipe's section asks for."""
    if settings.steer == "sign":
        return SignControl(settings, objective.train_on)
    return Controller(settings, knob(settings, objective, set_temperature))


def knob(
    settings: Thermostat, objective: Objective, set_temperature: Callable[[float], None]
) -> Callable[[float], None]:
    """What sets the number that a recipe's thermostat steers."""
    if settings.steer == "temperature":
        return set_temperature
    if settings.steer == "bonus":
        terms, key, sign = objective.named("entropy_loss"), "coef", -1.0  # a bonus is a negative loss
    elif settings.steer == "clip_high":
        terms, key, sign = [t for t in objective.terms if "clip_high" in t.settings], "clip_high", 1.0
    else:
        terms, key, sign = objective.named("kl_cov_tokens"), "fraction", 1.0

    def turn(value: float) -> None:
        for term in terms:
            term.settings[key] = sign * value

    return turn

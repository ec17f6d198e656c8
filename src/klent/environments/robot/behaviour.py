"""Who acts while data are recorded: Gaussians around a scripted policy, so that their density is known."""

from typing import Literal, NamedTuple

import numpy as np

from klent.environments.robot.simulator import Outcome, Simulator, Vector

BehaviourName = float | Literal["random"]
"""Standard deviation of the noise on the scripted policy's actions; or actions that are noise alone."""


class Behaviour(NamedTuple):
    """A Gaussian policy: N(scripted, std²) in each number of an action; of a random one N(0, 1).

    The density is that of the action as drawn. The robot clips it to [-1, 1], which belongs to the robot.
    """

    std: float
    scripted: bool = True

    @classmethod
    def named(cls, name: BehaviourName) -> "Behaviour":
        """The behaviour that a collection calls ``0.3`` or ``random``."""
        return cls(1.0, scripted=False) if isinstance(name, str) else cls(float(name))

    def mean(self, simulator: Simulator) -> Vector:
        """The mean of its action in the present state, ``[A]``."""
        return simulator.scripted() if self.scripted else np.zeros(simulator.actions)

    def act(self, simulator: Simulator, generator: np.random.Generator) -> tuple[Vector, Vector]:
        """An action and its mean, ``[A]`` each."""
        mean = self.mean(simulator)
        return mean + self.std * generator.standard_normal(len(mean)), mean


def scripted_return(simulator: Simulator, steps: int) -> float:
    """What the scripted policy earns in so many steps from the present state, which it leaves."""
    return float(sum(_scripted_step(simulator).reward for _ in range(steps)))


def _scripted_step(simulator: Simulator) -> Outcome:
    return simulator.step(simulator.scripted())

"""What a simulated robot is: vectors in, vectors out, and a state that can be gone back to."""

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]


class Outcome(NamedTuple):
    """What follows an action.

    Attributes:
        observation: of the state reached, ``[D]``.
        reward: of the action.
        success: whether the task is solved in the state reached; it may come undone.
    """

    observation: Vector
    reward: float
    success: bool


class Simulator(Protocol):
    """A robot and its task. It is seeded, and deterministic from a state on: chance is in the actions alone.

    Attributes:
        observations: D, the numbers of an observation.
        actions: A, the numbers of an action; the robot clips each to [-1, 1].
        horizon: steps of an episode.
    """

    observations: int
    actions: int
    horizon: int

    def reset(self, seed: int) -> Vector:
        """Begin an episode; the same seed begins the same one."""
        ...

    def step(self, action: Vector) -> Outcome:
        """Act once."""
        ...

    def scripted(self) -> Vector:
        """What the scripted policy does in the present state, in [-1, 1], ``[A]``."""
        ...

    def save(self) -> object:
        """The present state, for :meth:`load` of this simulator within this episode."""
        ...

    def load(self, state: object) -> Vector:
        """Go back to a state, to the last bit; its observation."""
        ...

"""A point that goes to a goal on a plane: a robot's task that needs no simulator, for tests and first tries."""

from typing import cast

import numpy as np

from klent.environments.robot.simulator import Outcome, Vector

REACH, NEAR = 0.1, 0.15


class Reach:
    """The hand moves by 0.1 of each action. The reward is 1 less the distance to the goal, and not below 0.

    The scripted policy goes straight along both axes. The task is solved within 0.15 of the goal.
    """

    observations = 4
    actions = 2
    horizon = 40

    def reset(self, seed: int) -> Vector:
        start = np.random.default_rng(seed).uniform(-1, 1, 4)
        self.hand, self.goal = start[:2], start[2:]
        return self._observe()

    def step(self, action: Vector) -> Outcome:
        self.hand = self.hand + REACH * np.clip(action, -1, 1)
        distance = float(np.linalg.norm(self.goal - self.hand))
        return Outcome(self._observe(), max(0.0, 1 - distance), distance < NEAR)

    def scripted(self) -> Vector:
        return np.clip((self.goal - self.hand) / REACH, -1, 1)

    def save(self) -> object:
        return self.hand.copy(), self.goal.copy()

    def load(self, state: object) -> Vector:
        hand, goal = cast(tuple[Vector, Vector], state)
        self.hand, self.goal = hand.copy(), goal.copy()
        return self._observe()

    def _observe(self) -> Vector:
        return np.concatenate([self.hand, self.goal])

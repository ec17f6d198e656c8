"""Tasks of MetaWorld v3, without a display."""

import os
import warnings
from importlib import import_module
from typing import Any, cast

import numpy as np

from klent.environments.robot.simulator import Outcome, Vector
from klent.errors import ConfigError

TASKS = ("bin-picking", "button-press", "door-open", "drawer-open", "plate-slide", "sweep-into")
"""Those of contrastive preference learning's table. Another one of MetaWorld's works by its name, too."""

_READ = np.r_[0:18, 22:39]  # of 39 numbers; the others are hand and gripper as they were a step ago
_HAND_RANGE = np.array([0.25, 0.15, 0.2])
_HAND_STEPS = 50
_REWARD = 10.0  # the largest of a step
_PLAIN = (bool, int, float, np.generic, type(None))


class MetaWorld:
    """A task as contrastive preference learning has it: 35 numbers, 250 steps, rewards in [0, 1].

    The observation is MetaWorld's without the second copy of hand and gripper, with the goal in it. An episode
    begins with the hand displaced at random by up to (0.25, 0.15, 0.2) m, by 50 steps of its guide.

    Args:
        task: name without version, such as ``drawer-open``.

    Raises:
        ConfigError: MetaWorld is not installed, or has no such task.
    """

    observations = 35
    actions = 4
    horizon = 250

    def __init__(self, task: str) -> None:
        os.environ.setdefault("MUJOCO_GL", "disabled")
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
        try:
            self.mujoco: Any = import_module("mujoco")
            classes = import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS
            policies = import_module("metaworld.policies")
        except ImportError as error:
            raise ConfigError(f"needs metaworld: pip install 'klent[robot]' ({error})") from error
        if f"{task}-v3" not in classes:
            known = ", ".join(sorted(name.removesuffix("-v3") for name in classes))
            raise ConfigError(f"MetaWorld has no task {task!r}; it has {known}")
        world = classes[f"{task}-v3"]()
        world._partially_observable = False
        world.__dict__.pop("sawyer_observation_space", None)  # made for an observation without the goal
        world._freeze_rand_vec, world.seeded_rand_vec, world._set_task_called = False, True, True
        self.world: Any = world
        words = "".join(word.capitalize() for word in task.split("-"))
        self.policy: Any = getattr(policies, f"Sawyer{words}V3Policy")()
        self._whole = self.mujoco.mjtState.mjSTATE_INTEGRATION

    def reset(self, seed: int) -> Vector:
        self.world.seed(seed)
        self.world.reset()
        self._displace_hand(np.random.default_rng(seed))
        self.world._prev_obs = self.world._get_curr_obs_combined_no_goal()
        return self._see(self.world._get_obs())

    def _displace_hand(self, generator: np.random.Generator) -> None:
        world = self.world
        target = world.hand_init_pos + generator.uniform(-1, 1, 3) * _HAND_RANGE
        target = np.clip(target, world.mocap_low, world.mocap_high)
        for _ in range(_HAND_STEPS):
            world.data.mocap_pos[0, :] = target
            world.data.mocap_quat[0, :] = (1, 0, 1, 0)
            world.do_simulation([-1, 1], world.frame_skip)
        self.mujoco.mj_forward(world.model, world.data)

    def step(self, action: Vector) -> Outcome:
        seen, reward, _, _, facts = self.world.step(np.clip(action, -1, 1))
        return Outcome(self._see(seen), float(reward) / _REWARD, bool(facts["success"]))

    def scripted(self) -> Vector:
        action: Vector = np.clip(self.policy.get_action(self._seen).astype(np.float64), -1, 1)
        return action

    def save(self) -> object:
        """The simulator's whole state, and what MetaWorld keeps of the episode beside it."""
        model, data = self.world.model, self.world.data
        state = np.empty(self.mujoco.mj_stateSize(model, self._whole))
        self.mujoco.mj_getState(model, data, state, self._whole)
        kept = {name: _copied(value) for name, value in vars(self.world).items() if _is_kept(value)}
        return state, kept, self._seen.copy()

    def load(self, state: object) -> Vector:
        physics, kept, seen = cast(tuple[Vector, dict[str, object], Vector], state)
        model, data = self.world.model, self.world.data
        for _ in range(2):  # what follows from the state is computed, which changes where its solver starts
            self.mujoco.mj_setState(model, data, physics, self._whole)
            self.mujoco.mj_forward(model, data)
        self.mujoco.mj_setState(model, data, physics, self._whole)
        vars(self.world).update({name: _copied(value) for name, value in kept.items()})
        return self._see(seen.copy())

    def _see(self, seen: Vector) -> Vector:
        self._seen = seen
        return seen[_READ]


def _is_kept(value: object) -> bool:
    """Whether an attribute is a number or an array of its own; a view follows what it shows by itself."""
    return isinstance(value, _PLAIN) or (isinstance(value, np.ndarray) and bool(value.flags.owndata))


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, np.ndarray) else value

"""Problems and rewards: where prompts come from and how completions are scored.

Names are imported when they are first used: a reward's process imports one module of this package, and should
not wait for pydantic.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klent.config.rewards import Reward as Reward
    from klent.config.rewards import parse_rewards as parse_rewards
    from klent.streams.prompt import Prompt as Prompt
    from klent.tasks.data import DataTask as DataTask
    from klent.tasks.gym import GymTask as GymTask
    from klent.tasks.load import load_task as load_task
    from klent.tasks.scorer import Scorer as Scorer
    from klent.tasks.scorer import Scores as Scores
    from klent.tasks.task import Task as Task

_MODULES = {
    "DataTask": "klent.tasks.data",
    "GymTask": "klent.tasks.gym",
    "Prompt": "klent.streams.prompt",
    "Reward": "klent.config.rewards",
    "Scorer": "klent.tasks.scorer",
    "Scores": "klent.tasks.scorer",
    "Task": "klent.tasks.task",
    "load_task": "klent.tasks.load",
    "parse_rewards": "klent.config.rewards",
}
__all__ = [
    "DataTask",
    "GymTask",
    "Prompt",
    "Reward",
    "Scorer",
    "Scores",
    "Task",
    "load_task",
    "parse_rewards",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'klent.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

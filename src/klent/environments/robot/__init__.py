"""Simulated robots by name, policies that act in them, and the segments recorded of them."""

from klent.environments.robot.metaworld import TASKS, MetaWorld
from klent.environments.robot.reach import Reach
from klent.environments.robot.simulator import Outcome, Simulator


def make_simulator(task: str) -> Simulator:
    """The simulator of a task: ``reach``, which needs nothing installed, or one of MetaWorld's.

    Raises:
        ConfigError: MetaWorld is not installed, or has no such task.

    Example:
        >>> make_simulator("reach").horizon
        40
    """
    return Reach() if task == "reach" else MetaWorld(task)


__all__ = ["TASKS", "MetaWorld", "Outcome", "Reach", "Simulator", "make_simulator"]

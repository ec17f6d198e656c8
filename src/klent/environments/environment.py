"""What an environment is: it says something, the policy answers, until it is over."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

Observation = str | list[dict[str, str]]
"""Text, or messages that the model's chat template renders."""


class Step(NamedTuple):
    """What the environment answers to an action.

    Attributes:
        observation: what the policy reads next; not read where ``done``.
        reward: of the turn that the action was.
        done: whether the episode is over.
        info: more about the step, for logs.
    """

    observation: Observation = ""
    reward: float = 0.0
    done: bool = False
    info: Mapping[str, object] = {}


class Environment(Protocol):
    """A world for one episode at a time; picklable, so that it can run in a process of its own.

    A plain prompt with a verifier is the one-turn environment: ``reset`` gives the prompt, ``step`` its reward
    and ``done``. Tasks with rewards go that way in batches (:class:`klent.rollout.source.TaskSource`), which
    is faster.
    """

    def reset(self, row: Mapping[str, object], seed: int) -> Observation:
        """Begin an episode from a row of the data; the same row and seed give the same episode."""
        ...

    def step(self, action: str) -> Step:
        """Answer the policy's text."""
        ...

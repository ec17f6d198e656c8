"""The moving parts of a run, whatever is trained, and what their builders are given."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from klent.config import Recipe
from klent.control.organ import Organ
from klent.kit.world import OneProcess, World
from klent.models.load import LoadedModel
from klent.policies.policy import Policy
from klent.rollout.engine import Engine
from klent.runs.engines import Progress
from klent.runs.evaluation import EvalRow
from klent.runs.samples import Decoder
from klent.streams.batch import Batch
from klent.streams.prompt import Prompt
from klent.tasks import Task
from klent.tasks.pool import EnvironmentPool
from klent.training.objective import Objective
from klent.training.reference import Reference
from klent.training.update import Updater

Note = Callable[[str], None]
Gathering = Callable[[], AbstractContextManager[object]]


@dataclass
class Parts:
    """What a training step is made of.

    Attributes:
        model: the network whose parameters are counted.
        decoder: what an action is called in samples and reports: a tokenizer, or what stands for one.
        engine: samples for training.
        sampler: samples for evaluation: from the policy alone.
        policy: what is trained.
        updater: trains it.
        compared: what gives the reference's log-probabilities; None where no term reads them.
        organs: thermostat, mixture, weights of the mismatch and the kept policy, where the recipe has them.
        save: writes the model as a folder, given the task.
        loaded: the model, its tokenizer and stop tokens; None of a policy that reads no text.
        reference: what the policy is compared with; None where it is not, or not loaded yet.
        alone: log-probabilities of a row's tokens, read without other rows; None of a policy that has none.
        values: makes the organ that learns values from logged play, given the task; None where there is none.
        compare: measures held-out pairs after so many steps; None where completions are sampled and scored.
        gathered: a context in which every rank has all weights, for ranks that hold a part of each; all enter it.
    """

    model: nn.Module
    decoder: Decoder
    engine: Engine
    sampler: Engine
    policy: Policy
    updater: Updater
    compared: Reference | None
    organs: list[Organ]
    save: Callable[[Task, Path], None]
    loaded: LoadedModel | None = None
    reference: Policy | None = None
    alone: Callable[[Batch, int], Tensor] | None = None
    values: Callable[[Task], Organ] | None = None
    compare: Callable[[Sequence[Prompt], int], EvalRow] | None = None
    gathered: Gathering = nullcontext

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self.updater.objective


class Around(NamedTuple):
    """What a run gives to whoever builds its parts.

    Attributes:
        progress: told of (completions done, completions asked for) during a rollout.
        note: told in words of anything that a user should know, such as a model that cannot share prompts.
        environments: what the task's prompts are the openings of; None where they are answered once.
        played: the same of the held-out problems that are answered.
        world: the ranks that share the run.
    """

    progress: Progress
    note: Note
    environments: EnvironmentPool | None = None
    played: EnvironmentPool | None = None
    world: World = OneProcess()


Builder = Callable[[Recipe, Around], Parts]
"""Loads a kind of policy and builds everything that a step needs of it."""

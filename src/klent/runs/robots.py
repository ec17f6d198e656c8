"""A robot's parts: network, segments, the behaviour policy's label, and a jury of simulators."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from klent.config import GaussianSettings, Recipe, SegmentSettings
from klent.errors import ConfigError, ModelError, RunError
from klent.kit.seeds import derive_seed
from klent.measure.score import measure
from klent.models.locate import check_folder
from klent.policies.motor.labels import BehaviourKL
from klent.policies.motor.network import UNIT_STD, MotorConfig, MotorNetwork, load_motor, save_motor
from klent.policies.motor.policy import MotorPolicy
from klent.rollout.segment_engine import SegmentEngine
from klent.runs.evaluation import EvalRow
from klent.runs.objective import build_objective
from klent.runs.parts import Around, Parts
from klent.runs.samples import Places
from klent.runs.updaters import build_updater
from klent.streams.prompt import Prompt
from klent.tasks import load_task
from klent.tasks.process import CallFailed, Worker
from klent.tasks.segment_task import open_segments
from klent.tasks.segments import Segments
from klent.training.objective import Objective
from klent.training.reference import MeasuredReference

NEW = "new"
"""As ``model``: made from the run's seed."""

_EPISODE_SECONDS = 120.0  # at most; one takes a second


def build_robot_parts(recipe: Recipe, around: Around) -> Parts:
    """The parts of a run that trains a Gaussian policy on segments."""
    settings, task = cast(GaussianSettings, recipe.policy), cast(SegmentSettings, recipe.task)
    segments = open_segments(Path(task.segments))
    network = load_network(recipe.model, settings, segments, recipe.seed)
    objective, budget = build_objective(recipe), recipe.update.tokens_per_microbatch
    policy = MotorPolicy(network, behaviour=_behaviour(objective, segments), budget=budget)
    updater = build_updater(recipe, policy, objective, around.world, filler=0)
    compared = None
    if updater.needs.reference:
        initial = load_network(recipe.reference or recipe.model, settings, segments, recipe.seed)
        compared = MeasuredReference(
            MotorPolicy(initial.requires_grad_(False), budget=budget), updater.measure
        )
    engine, jury = SegmentEngine(segments), Jury(segments.settings.task, network, workers=task.workers)
    return Parts(
        model=network,
        decoder=Places(),
        engine=engine,
        sampler=engine,
        policy=policy,
        updater=updater,
        compared=compared,
        organs=[],
        save=lambda task, folder: save_motor(network, folder),
        compare=jury.judge,
    )


def open_network(model: str, recipe: Recipe) -> MotorNetwork:
    """A network as the recipe's policy has it."""
    segments = open_segments(Path(cast(SegmentSettings, recipe.task).segments))
    return load_network(model, cast(GaussianSettings, recipe.policy), segments, recipe.seed)


def evaluate_robot(model: str, recipe: Recipe) -> EvalRow:
    """Episodes of any model of this robot, from the recipe's held-out starts: a row of eval.jsonl, step 0."""
    task = cast(SegmentSettings, recipe.task)
    prompts = load_task(task, seed=recipe.seed, heldout=0).heldout(recipe.eval.problems if recipe.eval else 0)
    robot = open_segments(Path(task.segments)).settings.task
    return Jury(robot, open_network(model, recipe), workers=task.workers).judge(prompts, 0)


def export_robot(recipe: Recipe, fill: Callable[[Mapping[str, nn.Parameter]], None], folder: Path) -> None:
    """Write the recipe's network with other weights.

    Args:
        recipe: of the run.
        fill: copies the weights into the trained parameters.
        folder: where to.
    """
    network = open_network(recipe.model, recipe)
    fill(dict(network.named_parameters()))
    save_motor(network, folder)


def load_network(name: str, settings: GaussianSettings, segments: Segments, seed: int) -> MotorNetwork:
    """The network of a folder, or one made from a seed, which reads what the segments read.

    Raises:
        ModelError: there is no such folder, or it is of a robot with other observations or actions.
        ConfigError: it is of another form than the recipe says.
    """
    observations, actions = segments.observation.shape[-1], segments.action.shape[-1]
    if name == NEW:
        std = UNIT_STD if settings.std is None else settings.std
        config = MotorConfig(
            observations, actions, settings.hidden, settings.layers, settings.form, std, settings.dropout
        )
        network = MotorNetwork(config, generator=torch.Generator().manual_seed(derive_seed(seed, "network")))
        network.scale_to(segments.observation.flatten(0, 1))
        return network
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"there is no model folder at {name}. Name the final/ folder of a run, or model: {NEW}"
        )
    check_folder(folder)
    network = load_motor(folder)
    config = network.config
    if (config.observations, config.actions) != (observations, actions):
        raise ModelError(
            f"{name} reads {config.observations} numbers and gives {config.actions}; the robot of "
            f"{segments.settings.task} has {observations} and {actions}"
        )
    _refuse_other(name, settings, config)
    network.config = replace(config, dropout=settings.dropout)
    for layer in network.layers:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = settings.dropout
    return network


def _refuse_other(name: str, settings: GaussianSettings, config: MotorConfig) -> None:
    """Refuse a policy section that says otherwise than the folder of the model."""
    std = UNIT_STD if settings.std is None else settings.std
    said: dict[str, object] = {"form": settings.form, "hidden": settings.hidden, "layers": settings.layers}
    if config.form == "tanh":
        said["std"] = std
    for key, value in said.items():
        its = getattr(config, key)
        if its != value and not (key == "std" and math.isclose(config.std, std)):
            raise ConfigError(
                f"policy.{key}: {value}, and the model of {name} has {its}. Set policy.{key}={its}"
            )


def _behaviour(objective: Objective, segments: Segments) -> BehaviourKL | None:
    """The label that the loss asks for; None where no term reads the behaviour policy's divergence.

    Raises:
        ConfigError: the collection does not have what the label needs.
    """
    labelled = [term for term in objective.terms if "kl" in term.streams]
    if not labelled:
        return None
    term = labelled[0]
    try:
        return BehaviourKL(segments, term.settings.get("label", "realised"), term.settings.get("gamma", 1.0))
    except ValueError as error:
        raise ConfigError(f"loss.{term.name}.{error}") from error


class Jury:
    """Plays the policy as it stands from held-out starts, in processes with a simulator each.

    Args:
        task: of the collection.
        network: the very one that is trained; it acts by its mean.
        workers: processes. Each episode depends on its start alone.
    """

    def __init__(self, task: str, network: MotorNetwork, *, workers: int) -> None:
        self.task = task
        self.network = network
        self.workers = [Worker("klent.rollout.robot_play:play_policy") for _ in range(workers)]

    def judge(self, prompts: Sequence[Prompt], step: int) -> EvalRow:
        """A row of eval.jsonl: an episode from each start is right where it solves the task.

        Raises:
            RunError: a simulator failed.
        """
        started = time.perf_counter()
        seeds, count = [prompt.columns["seed"] for prompt in prompts], len(self.workers)
        with tempfile.TemporaryDirectory(prefix="klent-robot-") as scratch:
            save_motor(self.network, Path(scratch, "policy"))

            def play(number: int) -> list[list[float]]:
                share = seeds[number::count]
                arguments = {"task": self.task, "folder": str(Path(scratch, "policy")), "seeds": share}
                try:
                    played = self.workers[number].call(arguments, _EPISODE_SECONDS * len(share))
                except CallFailed as error:
                    raise RunError(f"an episode of {self.task} failed: {error}") from error
                return cast(list[list[float]], played)

            with ThreadPoolExecutor(count, thread_name_prefix="jury") as threads:
                shares = list(threads.map(play, range(count)))
        played = [shares[index % count][index // count] for index in range(len(seeds))]
        solved = [[float(success)] for _, success in played]
        return {
            "step": step,
            "split": "heldout",
            "problems": len(prompts),
            "samples": 1,
            **measure(solved),
            "episode/return": sum(earned for earned, _ in played) / len(played),
            "seconds": time.perf_counter() - started,
            "rewards": solved,
            "correct": solved,
        }

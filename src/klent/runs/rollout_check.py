"""``klent doctor --rollout``: whether a recipe samples from the policy that it trains.

A few steps of the recipe's own loop at rate 0: weights are synchronised, completions sampled, gradients taken, and
nothing moves. So the gap between sampler and trainer is rounding, and the same at every step. Where it is not, a
third number says which side is off: each row alone, without packing and cache, through the model's own head.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from klent.config import Recipe
from klent.control.organ import Organ
from klent.errors import ConfigError, SyncError
from klent.kit.seeds import derive_seed
from klent.kit.text import plural
from klent.models.device import type_name
from klent.models.load import LoadedModel
from klent.policies.causal_lm.policy import CausalPolicy
from klent.policies.causal_lm.probe import logits_alone
from klent.rollout.blame import blame_weights
from klent.rollout.causes import Fault, Reading, Sampler, explain
from klent.rollout.certificate import TOLERANCE
from klent.runs.build import build_loop, build_parts
from klent.runs.console import QuietConsole
from klent.runs.doctor import Check
from klent.runs.folder import RunFolder
from klent.runs.loop import Loop
from klent.runs.parts import Around
from klent.streams.batch import Batch
from klent.streams.episode import Episode
from klent.tasks import Scores, load_task
from klent.training.update import Updater

READ_ALONE = 128  # tokens of the last step that are read row by row, about
GROWTH = 3.0  # times the first step's gap, at rate 0


@dataclass
class Gaps(Organ):
    """Measures sampler against trainer as each step has sampled, and keeps the last step's episodes.

    Attributes:
        updater: gives the trainer's numbers, as the update computes them.
        steps: ``|log p|`` apart at each action of each step, nats.
    """

    updater: Updater
    steps: list[Tensor] = field(default_factory=list)
    batch: Batch | None = None
    trainer: Tensor = field(default_factory=lambda: torch.zeros(0))
    name = "gaps"

    def after_rollout(self, batch: Batch) -> None:
        """Both sides' numbers of everything sampled; at rate 0 an older policy is the policy."""
        batch = replace(batch, lag=0)
        sampling = batch.at_sampling
        if sampling is None:
            raise ConfigError(
                "klent doctor --rollout compares sampled completions, and this recipe replays data; name one that "
                "samples"
            )
        self.batch = batch
        self.trainer = self.updater.measure(batch, range(len(batch))).logp
        self.steps.append((sampling.logp - self.trainer)[batch.mask].abs())


class _Chance:
    """Rewards by chance: at rate 0 they decide nothing, and a step has a gradient."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(derive_seed(seed, "doctor", 0))

    def score_episodes(self, episodes: Sequence[Episode]) -> Scores:
        """A number in [0, 1) each."""
        return Scores(torch.rand(len(episodes), generator=self.generator).tolist(), {}, {})


def examine_rollout(recipe: Recipe, *, steps: int = 3) -> list[Check]:
    """Run a recipe at rate 0 and say what its sampler's numbers are.

    Args:
        recipe: nothing of it is trained, evaluated or kept.
        steps: how many.

    Returns:
        A line for each step, and one for each thing that is wrong.

    Raises:
        ConfigError: the recipe samples no text.
    """
    if not (recipe.policy.language and recipe.rollout.sampled):
        raise ConfigError(
            f"klent doctor --rollout compares sampled texts, and {recipe.name} samples none; name a recipe of a "
            "language model"
        )
    task = load_task(recipe.task, seed=recipe.seed, heldout=0, needed=())
    console = QuietConsole()
    around = Around(lambda done, of: None, console.warn, task.environments)
    try:
        parts = build_parts(recipe, around)
        assert parts.loaded is not None
        assert isinstance(parts.policy, CausalPolicy)
        parts.updater.learning_rate = lambda step: 0.0
        gaps = Gaps(parts.updater)
        parts.organs.append(gaps)
        with tempfile.TemporaryDirectory() as scratch, RunFolder.create(Path(scratch) / "run") as folder:
            judge = _Chance(recipe.seed)
            loop = build_loop(recipe, parts, folder, task, task, judge, None, console, evaluate=False)
            refused = _steps(loop, steps)
            for organ in loop.organs:
                organ.close()
    finally:
        if task.environments is not None:
            task.environments.close()
    return [*_lines(gaps.steps), *refused, *_verdict(gaps, parts.policy, parts.loaded)]


def _steps(loop: Loop, count: int) -> list[Check]:
    try:
        for number in range(1, count + 1):
            loop.step(number)
    except SyncError as error:
        return [Check("sync", "fault", str(error))]
    return []


def _lines(steps: Sequence[Tensor]) -> list[Check]:
    return [
        Check(
            f"gap at step {number}",
            "ok",
            f"mean {float(gap.mean()):.2g}, largest {float(gap.max()):.2g} nats, of {plural(len(gap), 'token')}",
        )
        for number, gap in enumerate(steps, start=1)
    ]


def _verdict(gaps: Gaps, policy: CausalPolicy, loaded: LoadedModel) -> list[Check]:
    """What is wrong: a gap beyond rounding with its cause, or one that grows although nothing is trained."""
    if not gaps.steps:
        return []
    tolerance = TOLERANCE[type_name(loaded.model.dtype)]
    means = [float(gap.mean()) for gap in gaps.steps]
    checks = []
    if not all(tolerance.holds(gap) for gap in gaps.steps):
        fault = _cause(gaps, policy, tolerance.mean)
        checks.append(Check(fault.cause, "fault", fault.sentence))
    if means[-1] > GROWTH * means[0] + tolerance.change:
        text = (
            f"the gap grows from {means[0]:.2g} to {means[-1]:.2g} nats at rate 0: the sampler's weights move"
        )
        checks.append(Check("not flat", "fault", text))
    if not checks:
        checks.append(
            Check("sampler", "ok", "it samples from the policy that is trained; at rate 0 the gap is flat")
        )
    return checks


def _cause(gaps: Gaps, policy: CausalPolicy, tolerance: float) -> Fault:
    """Which side is off, and the fault whose numbers it has."""
    batch, taken = gaps.batch, Sampler(policy.temperature)
    assert batch is not None
    assert batch.at_sampling is not None
    plain = [k for k, episode in enumerate(batch.episodes) if bool(episode.acted.all())]
    chosen = plain[: max(1, READ_ALONE // batch.mask.shape[1])]
    if not chosen:
        said = (
            "the sampler's numbers are not the trainer's; episodes of several turns are not read row by row"
        )
        return Fault("other sampling", said)
    rows = [(batch.episodes[k].prompt_ids, batch.episodes[k].tokens.tolist()) for k in chosen]
    policy.train(False)
    with torch.no_grad():
        logits = torch.cat([logits_alone(policy.model, *row).cpu() for row in rows])

        def reading(numbers: Tensor) -> Reading:
            reported = [numbers[k][batch.mask[k]] for k in chosen]
            tokens = torch.tensor([token for _, completion in rows for token in completion])
            return Reading(logits, tokens, torch.cat(reported), tuple(map(len, reported)))

        trainer, sampler = reading(gaps.trainer), reading(batch.at_sampling.logp)
        alone = trainer.logp(*taken)
        if float(trainer.gap(alone).mean()) > tolerance:
            said = "the trainer's own numbers are not those of its rows alone; set update.packing=off and look again"
            return explain(trainer, taken, tolerance=tolerance) or Fault("trainer", said)
        return (
            explain(sampler, taken, tolerance=tolerance)
            or blame_weights(policy, sampler, rows, taken=taken, tolerance=tolerance)
            or Fault("other weights", "the sampler's numbers are of no policy that the trainer holds")
        )

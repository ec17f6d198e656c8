"""The loop. One step, from prompts to what the update did:

    source -> episodes -> rewards -> batch -> advantages -> update -> what changed -> one row of metrics

It does not know which algorithm it runs (klent.training.objective does), where episodes come from (a Source and
its Engine do), what is trained (a Policy), nor what else looks on (a list of organs).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from klent.control.organ import Organ, StepRecord
from klent.kit.seeds import derive_seed
from klent.measure.change import distribution_change, probe_rows
from klent.measure.metrics import rollout_metrics, time_metrics, update_metrics
from klent.measure.roofline import Floor
from klent.rollout.engine import Engine
from klent.rollout.source import Source
from klent.runs.console import TrainConsole
from klent.runs.evaluation import Evaluations
from klent.runs.interrupt import StopRequest
from klent.runs.recorder import Recorder
from klent.runs.state import RunState
from klent.streams.batch import Batch, make_batch
from klent.training.reference import Reference
from klent.training.update import Updater, UpdateResult

PROBE_PROMPTS = 2  # prompts whose completions are measured again after the update


class Loop:
    """One run; :meth:`fit` does it all, :meth:`step` is the part to read.

    Args:
        source: gives the episodes of a step and their rewards.
        engine: samples them; told of the policy's new weights before each step.
        updater: turns a batch into optimizer steps.
        reference: gives the reference's log-probabilities; None where no term reads them.
        organs: what looks on and turns knobs.
        evaluations: of held-out problems.
        recorder: writes and shows each step.
        state: saves and restores.
        console: shows the phase of a step.
        floor: the machine's limits, for the time metrics; None where there is nothing to compare.
        steps: training steps in all.
        checkpoint_every: steps between checkpoints, 0 = only at the end.
        seed: everything random in a step follows from it and the step's number.
    """

    def __init__(
        self,
        *,
        source: Source,
        engine: Engine,
        updater: Updater,
        reference: Reference | None,
        organs: Sequence[Organ],
        evaluations: Evaluations,
        recorder: Recorder,
        state: RunState,
        console: TrainConsole,
        floor: Floor | None,
        steps: int,
        checkpoint_every: int,
        seed: int,
    ) -> None:
        self.source = source
        self.engine = engine
        self.updater = updater
        self.reference = reference
        self.organs = organs
        self.evaluations = evaluations
        self.recorder = recorder
        self.state = state
        self.console = console
        self.floor = floor
        self.steps = steps
        self.checkpoint_every = checkpoint_every
        self.seed = seed
        self.done = 0
        self.stopped_by: int | None = None  # the signal that asked to stop
        self.seconds: dict[str, float] = {}

    @property
    def finished(self) -> bool:
        """Whether no step is left: all are done, or an evaluation has ended the run."""
        return self.evaluations.over or self.done >= self.steps

    def restore(self) -> int:
        """Take back the newest checkpoint; the steps done."""
        self.done = self.state.restore()
        return self.done

    def fit(self) -> None:
        """Every step that is left, or until the user asks to stop."""
        self.recorder.begin()
        for organ in self.organs:
            organ.begin()
        with StopRequest(self.console.stopping, self.updater.world) as stop:
            if self.done == 0:
                self.evaluations.at(0)
            stopping = stop.agreed()
            while not self.finished and not stopping:
                record = self.step(self.done + 1)
                self.recorder.record(record)
                self.done += 1
                for organ in self.organs:
                    organ.after_record(record)
                self.evaluations.if_due(self.done)
                if self.finished:  # before the last checkpoint, so that a run that is extended keeps the row
                    self.evaluations.at(self.done)
                stopping = stop.agreed()
                due = self.checkpoint_every and self.done % self.checkpoint_every == 0
                if due or stopping or self.finished:
                    self.console.phase("saving")
                    self.state.save(self.done)
        self.stopped_by = stop.signal
        if self.finished:
            self.evaluations.at(self.done)

    def step(self, number: int) -> StepRecord:
        """One training step; everything random in it follows from the run's seed and ``number``."""
        torch.manual_seed(derive_seed(self.seed, "torch", number))
        self.seconds = {"rollout": 0.0, "score": 0.0, "train": 0.0}
        started = time.perf_counter()
        for organ in self.organs:
            organ.before_step(number)
        with self._timed("rollout"):
            certificate = self.engine.sync(self.updater.policy)
            episodes = self.source.collect(number, self.updater.steps_done)
        with self._timed("score"):
            scores = self.source.score(episodes)
        rewards = None if scores is None else scores.reward
        batch = make_batch(
            episodes,
            rewards,
            group_size=self.source.group_size,
            whole_groups=self.updater.needs.whole_groups,
            to_go=None if scores is None else scores.to_go,
            version=self.updater.steps_done,
        )
        with self._timed("train"):
            self._measure_before(batch)
            for organ in self.organs:
                organ.after_rollout(batch)
            self.updater.objective.estimate_advantage(batch)
            result = self.updater.run(
                batch,
                seed=derive_seed(self.seed, "update", number),
                progress=lambda done, of: self.console.phase("train", done, of),
            )
        row = {"step": number, **rollout_metrics(batch, scores), **update_metrics(batch, result)}
        row |= self._change(batch, result)
        row |= certificate.metrics() if certificate else {}
        row["optimizer/lr"] = self.updater.learning_rate(self.updater.steps_done - 1)
        record = StepRecord(number, batch, scores, result, row)
        for organ in self.organs:
            record.row |= organ.after_update(record)
        self.seconds["step"] = time.perf_counter() - started
        record.row |= time_metrics(batch, result, self.seconds, self.floor)
        return record

    def _measure_before(self, batch: Batch) -> None:
        """The numbers that the objective reads and that the update itself does not bring."""
        rows = range(len(batch))
        if self.updater.needs.old:
            before = self.updater.measure(batch, rows, values=self.updater.needs.value_old)
            batch.streams.logp_old, batch.streams.entropy_old = before.logp, before.entropy
            batch.streams.value_old = before.value
        if self.reference is not None:
            batch.streams.logp_ref = self.reference.logp(batch)

    def _change(self, batch: Batch, result: UpdateResult) -> dict[str, float]:
        """What the update did to the distribution, on the actions of a few prompts; nothing where there is none."""
        if result.before is None:
            return {}
        rows = probe_rows(batch, result, prompts=PROBE_PROMPTS)
        after = self.updater.measure(batch, rows) if rows else result.before
        return distribution_change(batch, rows, result.before, after, result.coefficient)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self.console.phase(phase)
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started

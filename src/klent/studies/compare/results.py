"""The finished runs of a comparison, read from their folders: numbers only, one object per run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from klent.io.files import read_jsonl, read_object
from klent.kit.statistics import pass_at_k
from klent.kit.tables import Row, Table, finite
from klent.measure.score import Kind, kind_of
from klent.studies.compare.divergence import FILE
from klent.studies.compare.plan import ComparisonPlan, PlannedRun
from klent.studies.compare.statistics import Contrast, contrasts

MEAN = "mean reward"
CURVES = ("reward/mean", "policy/entropy", "heldout", "kl/reference")
"""Drawn over the steps: metrics of training, and the held-out score of each evaluation."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        arm, seed: which run of the comparison.
        name: of its folder.
        curves: metric -> step -> value, for :data:`CURVES`.
        before, after: the reward of each completion of each held-out problem, ``[P, n]``; NaN is unscorable.
            Where the comparison is of accuracies, 1 if it was correct and 0 if not.
        entropy_before, entropy: of the answers to held-out problems, nats per token; NaN if not measured.
        kl: to the base model, nats per token; NaN if it was not measured.
        seconds: spent in training steps.
        unscorable: share of the completions of the last evaluation that could not be scored.
    """

    arm: str
    seed: int
    name: str
    curves: dict[str, dict[int, float]]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    entropy_before: float
    entropy: float
    kl: float
    seconds: float
    unscorable: float = 0.0

    def score(self, measure: str) -> NDArray[np.float64]:
        """Each held-out problem's ``pass@k`` or ``mean reward`` after training, ``[P]``."""
        return _scores(self.after, measure)

    def score_before(self, measure: str) -> NDArray[np.float64]:
        """The same of the base model."""
        return _scores(self.before, measure)


def _scores(rewards: NDArray[np.float64], measure: str) -> NDArray[np.float64]:
    return means(rewards) if measure == MEAN else passes(rewards, int(measure.removeprefix("pass@")))


def average(scores: NDArray[np.float64]) -> float:
    """The mean over problems that could be scored; NaN if none could."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) else math.nan


def passes(correct: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """pass@k of each problem, ``[P]``, from outcomes ``[P, n]``."""
    return np.array(pass_at_k(correct.tolist(), k))


def means(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean reward of each problem, ``[P]``; NaN where none of its completions could be scored."""
    known = ~np.isnan(rewards)
    count = known.sum(axis=1)
    total = np.where(known, rewards, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Results:
    """A comparison, finished or not.

    Attributes:
        plan: the comparison.
        runs: the finished ones, in the plan's order.
        samples: completions of each held-out problem, the largest k of pass@k.
        kind: whether arms are compared by accuracy or, where rewards are graded, by mean reward.
        contrasts: "pass@1" and the largest "pass@k", or "mean reward" -> every arm against the first.
        twins: arms whose runs are the first arm's, number by number.
        missing: names of runs that are not finished.
        failed: name of a run -> why it failed.
    """

    plan: ComparisonPlan
    runs: list[RunResult]
    samples: int
    kind: Kind
    contrasts: dict[str, list[Contrast]]
    twins: list[str]
    missing: list[str]
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, arm: str) -> list[RunResult]:
        """The finished runs of an arm, seed by seed."""
        return [run for run in self.runs if run.arm == arm]

    @property
    def arms(self) -> list[str]:
        """Arms with at least one finished run, in the plan's order."""
        return [arm.name for arm in self.plan.arms if self.of(arm.name)]


def collect(plan: ComparisonPlan, failed: dict[str, str] | None = None) -> Results:
    """Read every finished run and compare the arms."""
    finished = [run for run in plan.runs if run.state == "done"]
    kind = kind_of([row for run in finished for row in _evaluations(run).values()])
    runs = [read_run(run, kind) for run in finished]
    done = {run.name for run in runs}
    samples = min((run.after.shape[1] for run in runs), default=1)
    first = plan.arms[0].name
    twins = _twins(runs, first)
    compared: dict[str, list[Contrast]] = {}
    if any(run.arm == first for run in runs):
        measures = [MEAN] if kind == "reward" else [f"pass@{k}" for k in dict.fromkeys((1, samples))]
        compared = {measure: _contrasts_by(measure, plan, runs, twins) for measure in measures}
    return Results(
        plan=plan,
        runs=runs,
        samples=samples,
        kind=kind,
        contrasts=compared,
        twins=twins,
        missing=[run.folder.name for run in plan.runs if run.folder.name not in done],
        failed=failed or {},
    )


def _contrasts_by(
    measure: str, plan: ComparisonPlan, runs: Sequence[RunResult], twins: Sequence[str]
) -> list[Contrast]:
    """Every arm against the first, over the problems that could be scored in every run."""
    scores = {run.name: run.score(measure) for run in runs}
    whole = ~np.isnan(np.array(list(scores.values()))).any(axis=0)
    if not whole.any():
        return []
    by_seed = {
        arm.name: {run.seed: scores[run.name][whole] for run in runs if run.arm == arm.name}
        for arm in plan.arms
    }
    return contrasts({arm: seeds for arm, seeds in by_seed.items() if seeds}, twins=twins)


def _evaluations(run: PlannedRun) -> dict[int, Row]:
    return {int(row["step"]): row for row in read_jsonl(run.folder / "eval.jsonl")}


def read_run(run: PlannedRun, kind: Kind) -> RunResult:
    """One finished run, read by its accuracy or by its mean reward."""
    rows = list(read_jsonl(run.folder / "metrics.jsonl"))
    evals = _evaluations(run)
    training, evaluations = Table(rows), Table(list(evals.values()))
    curves = {
        name: dict(
            zip(*(evaluations.series(kind) if name == "heldout" else training.series(name)), strict=True)
        )
        for name in CURVES
    }
    measured = run.folder / FILE
    divergence = finite(read_object(measured).get("kl/base")) if measured.is_file() else None
    last = evals[run.recipe.steps]
    first = evals.get(0, last)
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        name=run.folder.name,
        curves=curves,
        before=_samples(first, kind),
        after=_samples(last, kind),
        entropy_before=_or_nan(finite(first.get("entropy"))),
        entropy=_or_nan(finite(last.get("entropy"))),
        kl=_or_nan(divergence),
        unscorable=finite(last.get("unscorable")) or 0.0,
        seconds=sum(finite(row.get("time/step")) or 0.0 for row in rows),
    )


def _samples(row: Row, kind: Kind) -> NDArray[np.float64]:
    """``[P, n]``; JSON's null becomes NaN."""
    return np.array(row["correct" if kind == "accuracy" else "rewards"], dtype=float)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _twins(runs: Sequence[RunResult], first: str) -> list[str]:
    """Arms identical to the first in every seed they share: what they change had no effect."""
    firsts = {run.seed: run for run in runs if run.arm == first}
    twins = []
    for arm in dict.fromkeys(run.arm for run in runs if run.arm != first):
        pairs = [(run, firsts[run.seed]) for run in runs if run.arm == arm and run.seed in firsts]
        if pairs and all(
            a.curves == b.curves and np.array_equal(a.after, b.after, equal_nan=True) for a, b in pairs
        ):
            twins.append(arm)
    return twins

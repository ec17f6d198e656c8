"""The finished runs of a comparison, read from their folders: numbers only, one object per run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from klent.io.files import read_jsonl, read_object
from klent.kit.statistics import pass_at_k
from klent.kit.tables import Table, finite
from klent.studies.compare.divergence import FILE
from klent.studies.compare.plan import ComparisonPlan, PlannedRun
from klent.studies.compare.statistics import Contrast, contrasts

CURVES = ("reward/mean", "policy/entropy", "accuracy", "kl/reference")
"""Drawn over the steps: metrics of training, and the held-out accuracy of each evaluation."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        arm, seed: which run of the comparison.
        name: of its folder.
        curves: metric -> step -> value, for :data:`CURVES`.
        before, after: whether each completion of each held-out problem was correct, ``[P, n]``.
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

    def passed(self, k: int) -> float:
        """Held-out pass@k after training."""
        return float(passes(self.after, k).mean())

    def passed_before(self, k: int) -> float:
        """Held-out pass@k of the base model."""
        return float(passes(self.before, k).mean())


def passes(correct: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """pass@k of each problem, ``[P]``, from outcomes ``[P, n]``."""
    return np.array(pass_at_k(correct.tolist(), k))


@dataclass(frozen=True)
class Results:
    """A comparison, finished or not.

    Attributes:
        plan: the comparison.
        runs: the finished ones, in the plan's order.
        samples: completions of each held-out problem, the largest k of pass@k.
        contrasts: "pass@1" and the largest "pass@k" -> every arm against the first.
        twins: arms whose runs are the first arm's, number by number.
        missing: names of runs that are not finished.
        failed: name of a run -> why it failed.
    """

    plan: ComparisonPlan
    runs: list[RunResult]
    samples: int
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
    runs = [read_run(run) for run in plan.runs if run.state == "done"]
    done = {run.name for run in runs}
    samples = min((run.after.shape[1] for run in runs), default=1)
    first = plan.arms[0].name
    twins = _twins(runs, first)
    compared: dict[str, list[Contrast]] = {}
    if any(run.arm == first for run in runs):
        compared = {f"pass@{k}": _contrasts_at(k, plan, runs, twins) for k in dict.fromkeys((1, samples))}
    return Results(
        plan=plan,
        runs=runs,
        samples=samples,
        contrasts=compared,
        twins=twins,
        missing=[run.folder.name for run in plan.runs if run.folder.name not in done],
        failed=failed or {},
    )


def _contrasts_at(
    k: int, plan: ComparisonPlan, runs: Sequence[RunResult], twins: Sequence[str]
) -> list[Contrast]:
    """Every arm against the first by pass@k."""
    scores = {
        arm.name: {run.seed: passes(run.after, k) for run in runs if run.arm == arm.name} for arm in plan.arms
    }
    return contrasts({arm: by_seed for arm, by_seed in scores.items() if by_seed}, twins=twins)


def read_run(run: PlannedRun) -> RunResult:
    """One finished run."""
    rows = list(read_jsonl(run.folder / "metrics.jsonl"))
    evals = {int(row["step"]): row for row in read_jsonl(run.folder / "eval.jsonl")}
    training, evaluations = Table(rows), Table(list(evals.values()))
    curves = {
        name: dict(zip(*(evaluations if name == "accuracy" else training).series(name), strict=True))
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
        before=np.array(first["correct"], dtype=float),
        after=np.array(last["correct"], dtype=float),
        entropy_before=_or_nan(finite(first.get("entropy"))),
        entropy=_or_nan(finite(last.get("entropy"))),
        kl=_or_nan(divergence),
        unscorable=finite(last.get("unscorable")) or 0.0,
        seconds=sum(finite(row.get("time/step")) or 0.0 for row in rows),
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _twins(runs: Sequence[RunResult], first: str) -> list[str]:
    """Arms identical to the first in every seed they share: what they change had no effect."""
    firsts = {run.seed: run for run in runs if run.arm == first}
    twins = []
    for arm in dict.fromkeys(run.arm for run in runs if run.arm != first):
        pairs = [(run, firsts[run.seed]) for run in runs if run.arm == arm and run.seed in firsts]
        if pairs and all(a.curves == b.curves and np.array_equal(a.after, b.after) for a, b in pairs):
            twins.append(arm)
    return twins

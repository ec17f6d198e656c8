"""What the runs of a comparison left in their folders, read back: numbers only, one object a run."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klent.io.files import read_jsonl
from klent.report.read import finite
from klent.studies.compare.divergence import FILE
from klent.studies.compare.plan import ComparisonPlan, PlannedRun
from klent.studies.compare.statistics import Contrast, contrasts, pass_at_k

CURVES = ("reward/mean", "policy/entropy", "accuracy", "kl/reference")
"""What is drawn over the steps: metrics of training, and the held-out accuracy of each evaluation."""


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        arm, seed: which.
        name: of its folder.
        curves: metric -> step -> value, for :data:`CURVES`.
        before, after: whether each completion of each held-out problem was correct, ``[P, n]``.
        entropy_before, entropy: of the answers to held-out problems, nats per token.
        kl: to the base model, nats per token; NaN where it was not measured.
        seconds: spent in training steps.
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

    def passed(self, k: int) -> float:
        """Held-out pass@k after training."""
        return float(pass_at_k(self.after, k).mean())


@dataclass(frozen=True)
class Results:
    """A comparison as far as it has come.

    Attributes:
        plan: what was asked for.
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
        """Arms with at least one finished run; the first arm of the plan is the first here if it has one."""
        return [arm.name for arm in self.plan.arms if self.of(arm.name)]


def collect(plan: ComparisonPlan, failed: dict[str, str] | None = None) -> Results:
    """Read every finished run and compare the arms."""
    found = [read_run(run) for run in plan.runs if run.state == "done"]
    done = {run.name for run in found}
    samples = min((run.after.shape[1] for run in found), default=1)
    compared: dict[str, list[Contrast]] = {}
    first = plan.arms[0].name
    if any(run.arm == first for run in found):
        for k in dict.fromkeys((1, samples)):
            scores: dict[str, dict[int, NDArray[np.float64]]] = {}
            for arm in plan.arms:
                own = {run.seed: pass_at_k(run.after, k) for run in found if run.arm == arm.name}
                if own:
                    scores[arm.name] = own
            compared[f"pass@{k}"] = contrasts(scores)
    return Results(
        plan=plan,
        runs=found,
        samples=samples,
        contrasts=compared,
        twins=_twins(found, first),
        missing=[run.folder.name for run in plan.runs if run.folder.name not in done],
        failed=failed or {},
    )


def read_run(run: PlannedRun) -> RunResult:
    """One finished run."""
    rows = list(read_jsonl(run.folder / "metrics.jsonl"))
    evals = {int(row["step"]): row for row in read_jsonl(run.folder / "eval.jsonl")}
    curves: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    for name in CURVES:
        source: Sequence[dict[str, Any]] = list(evals.values()) if name == "accuracy" else rows
        for row in source:
            if (value := finite(row.get(name))) is not None:
                curves[name][int(row["step"])] = value
    measured = run.folder / FILE
    divergence = json.loads(measured.read_text()) if measured.is_file() else {}
    last = evals[run.recipe.steps]
    first = evals.get(0, last)
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        name=run.folder.name,
        curves=curves,
        before=np.array(first["correct"], dtype=float),
        after=np.array(last["correct"], dtype=float),
        entropy_before=finite(first.get("entropy")) or 0.0,
        entropy=finite(last.get("entropy")) or 0.0,
        kl=_or_nan(divergence.get("kl/base")),
        seconds=sum(finite(row.get("time/step")) or 0.0 for row in rows),
    )


def _or_nan(value: Any) -> float:
    known = finite(value)
    return math.nan if known is None else known


def _twins(runs: Sequence[RunResult], first: str) -> list[str]:
    """Arms that did what the first did in every seed they share: what they change never came into play."""
    own = {run.seed: run for run in runs if run.arm == first}
    twins = []
    for arm in dict.fromkeys(run.arm for run in runs if run.arm != first):
        pairs = [(run, own[run.seed]) for run in runs if run.arm == arm and run.seed in own]
        if pairs and all(a.curves == b.curves and np.array_equal(a.after, b.after) for a, b in pairs):
            twins.append(arm)
    return twins

"""A comparison whose runs were never made: folders as finished runs leave them, numbers of our choice."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from klent.config import dump_recipe
from klent.studies.compare.divergence import FILE
from klent.studies.compare.plan import ComparisonPlan, plan_comparison

RECIPE = """\
model: some/model
method: grpo
task: {gym: chain_sum}
reward: gym
steps: 4
eval: {problems: 30, samples: 4, every: 2}
"""


def fake_plan(folder: Path, *over: str, seeds: int = 3, overrides: tuple[str, ...] = ()) -> ComparisonPlan:
    """The plan of `my.yaml` in ``folder``."""
    (folder / "my.yaml").write_text(RECIPE)
    return plan_comparison(
        str(folder / "my.yaml"), overrides, over or ("method=grpo,rloo,dapo",), seeds, folder / "runs"
    )


def finish(
    plan: ComparisonPlan,
    chance: Callable[[str, int], float],
    *,
    only: int | None = None,
    graded: float | None = None,
) -> None:
    """Fill the folders of the first ``only`` runs; a completion is correct with ``chance(arm, seed)``.

    With ``graded`` that is the reward of a correct one; of the first run's last problem none could be scored.
    """
    for number, run in enumerate(plan.runs[:only]):
        rng = np.random.default_rng(number)
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(dump_recipe(run.recipe))
        (run.folder / "final").mkdir()
        (run.folder / "run.json").write_text(json.dumps({"wall_seconds": 60.0}))
        rows = [
            {"step": s, "reward/mean": 0.2 + 0.1 * s, "policy/entropy": 2.0 / s, "time/step": 1.5}
            for s in range(1, run.recipe.steps + 1)
        ]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        evals = []
        for step in (0, 2, 4):
            p = 0.3 if step == 0 else chance(run.arm, run.seed)
            correct = (rng.random((30, 4)) < p).astype(float)
            accuracy = float(correct.mean())
            row = {"step": step, "accuracy": accuracy, "entropy": 1.0, "correct": correct.tolist()}
            if graded is not None:
                rewards = [*(graded * correct).tolist()[:-1], [None] * 4 if number == 0 else [0.0] * 4]
                row = {"step": step, "reward": graded * accuracy, "entropy": 1.0, "rewards": rewards}
            evals.append(row)
        (run.folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
        (run.folder / FILE).write_text(json.dumps({"kl/base": 0.25}))

"""Which label, and which loss, teaches a robot most: success of cloning, CPL and PPL on one collection.

    klent collect data/drawer task=drawer-open segments=600 branches=4 behaviours=[0.1,0.3,0.5,1.0,random]
    python examples/robot/table.py data/drawer --runs runs/robot --out examples/robot/drawer_open.csv

The same segments, the same pairs of a seed and the same cloned policy to start from: what differs is the loss, and
whether a pair is ordered by regret or by return. A row is an arm under a seed: episodes solved of 25, from the same
starts for all. A finished run is not trained again, and a row that is there is not measured again. The sizes are
those of a first look, see --help; docs/robot.md says what the full size is.
"""

import argparse
import csv
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import klent
from klent.io.files import write_atomic
from klent.rollout.robot_play import play_policy
from klent.tasks.segment_task import open_segments

ALPHA = 0.1 / math.pi
"""CPL's 0.1: the log-density is its score times pi."""

COLUMNS = ("arm", "by", "gamma", "seed", "episodes", "solved", "first_loss", "last_loss", "seconds")
EPISODES = 25


class Arm(NamedTuple):
    """A loss, what orders pairs and the discount; the last two are empty where segments are imitated."""

    name: str
    by: str
    gamma: str
    loss: dict[str, dict[str, object]]

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


def arms(gammas: Sequence[float]) -> Iterator[Arm]:
    """Cloning first: the others start from it."""
    yield Arm("bc", "", "", {"cross_entropy": {}})
    for by in ("regret", "return"):
        yield Arm("cpl", by, "1", {"cpl": {"alpha": ALPHA, "gamma": 1.0, "rejected_weight": 0.5}})
        yield Arm("cpl unbiased", by, "1", {"cpl": {"alpha": ALPHA, "gamma": 1.0, "rejected_weight": 1.0}})
        for gamma in gammas:
            for label in ("expected", "realised"):
                settings = {"alpha": ALPHA, "gamma": gamma, "label": label}
                yield Arm(f"ppl {label}", by, f"{gamma:g}", {"policy_labeled_preference": settings})


def _run_name(arm: Arm, seed: int) -> str:
    discounted = "" if arm.gamma in ("", "1") else f"_{arm.gamma}"
    return f"{arm.name.replace(' ', '_')}_{arm.by or 'all'}{discounted}_{seed}"


def recipe_of(arm: Arm, seed: int, given: argparse.Namespace) -> dict[str, object]:
    """The recipe of an arm under a seed."""
    cloning = not arm.by
    batches = given.clone_steps if cloning else given.steps
    return {
        "name": _run_name(arm, seed),
        "model": "new" if cloning else str(given.runs / f"bc_all_{seed}" / "final"),
        "policy": {"kind": "gaussian", "form": "tanh", "hidden": given.hidden},
        "task": {"segments": str(given.segments), **({} if cloning else {"by": arm.by, "compare": "all"})},
        "loss": arm.loss,
        "rollout": {"engine": "dataset"},
        "group_size": 1 if cloning else 2,
        "reduce": {"over": "tokens" if cloning else "pairs"},
        "prompts_per_step": given.batch * given.together,
        "update": {"minibatches": given.together, "tokens_per_microbatch": 1 << 20},
        "steps": batches // given.together,
        "optimizer": {"lr": given.rate if cloning else given.rate / 3, "weight_decay": 0.0},
        "eval": None,
        "seed": seed,
    }


def measured(arm: Arm, seed: int, given: argparse.Namespace) -> dict[str, object]:
    """Train what is not trained, and play it."""
    started = time.perf_counter()
    recipe = recipe_of(arm, seed, given)
    folder = given.runs / str(recipe["name"])
    if not (folder / "final" / "config.json").is_file():
        klent.train(recipe, runs=given.runs, quiet=True, resume=folder.exists())
    losses = [row["objective/loss"] for row in klent.Run(folder).metrics]
    task = open_segments(given.segments).settings.task
    played = play_policy(task, str(folder / "final"), range(EPISODES), until_success=True)
    return {
        "arm": arm.name,
        "by": arm.by,
        "gamma": arm.gamma,
        "seed": seed,
        "episodes": EPISODES,
        "solved": sum(success for _, success in played),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("segments", type=Path, help="folder of the collection")
    parser.add_argument("--runs", type=Path, default=Path("runs/robot"))
    parser.add_argument("--out", type=Path, default=Path("drawer_open.csv"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, default=128, help="width; full size 512")
    parser.add_argument("--clone-steps", type=int, default=600, help="optimizer steps of cloning; full 10000")
    parser.add_argument("--steps", type=int, default=150, help="of preferences; full size 20000")
    parser.add_argument(
        "--batch", type=int, default=16, help="segments, or pairs, of an optimizer step; full 32"
    )
    parser.add_argument("--together", type=int, default=50, help="optimizer steps of a training step")
    parser.add_argument("--rate", type=float, default=1e-3, help="of cloning; a third of it for preferences")
    parser.add_argument("--gammas", type=float, nargs="+", default=[1.0, 0.9], help="discounts of PPL")
    given = parser.parse_args()
    rows = list(csv.DictReader(given.out.open())) if given.out.exists() else []
    for seed in given.seeds:
        for arm in arms(given.gammas):
            if any(
                (row["arm"], row["by"], row["gamma"], row["seed"]) == (*arm.key, str(seed)) for row in rows
            ):
                continue
            rows.append({key: str(value) for key, value in measured(arm, seed, given).items()})
            print(" ".join(rows[-1].values()), flush=True)
            lines = [COLUMNS, *([row[column] for column in COLUMNS] for row in rows)]
            write_atomic(given.out, "".join(f"{','.join(line)}\n" for line in lines))


if __name__ == "__main__":
    main()

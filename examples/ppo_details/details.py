"""What PPO's known details are worth, on the small model: one detail changed at a time.

    python examples/small_model/pretrain.py                  # once: writes runs/small_model
    python examples/ppo_details/details.py                   # trains what is missing, then writes details.csv
    python examples/ppo_details/details.py --arms base unclipped --seeds 0 1 --steps 8
    python examples/ppo_details/details.py --report          # prints the table of details.csv

Every arm is `method: ppo` on the problems of examples/small_model with one setting changed. A run that was cut goes
on where it stopped, and one that is done is not repeated. What is printed varies over seeds; differences are paired
by seed.
"""

import argparse
import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FILE = HERE / "details.csv"
RECIPE = HERE.parent / "small_model" / "recipe.yaml"
Row = dict[str, float | str]

BASE: dict[str, object] = {
    "method": "ppo",
    "group_size": 8,
    "update": {"epochs": 1, "minibatches": 4},
    "optimizer": {"lr": 1e-4},
    "eval": {"problems": 100, "samples": 4, "every": 0},
    "checkpoint": {"every": 10, "keep": 1},
}
NO_CLIP = {"clip_low": 0.99, "clip_high": 1e6}
ARMS: dict[str, dict[str, object]] = {
    "base": {},
    "not whitened": {"advantage": {"whiten": None}},
    "values unclipped": {"loss": {"value": {"clip": None}}},
    "lam 1": {"advantage": {"gae": {"lam": 1.0}}},
    "shared trunk": {"critic": {"trunk": "shared"}},
    "KL in the loss": {"token_reward": None, "loss": {"kl_in_loss": {"coef": 0.05}}},
    "unclipped": {"loss": {"ppo_clip": NO_CLIP}},
}


def merged(lower: dict[str, object], upper: dict[str, object]) -> dict[str, object]:
    """Two layers of settings, key by key."""
    out = dict(lower)
    for key, value in upper.items():
        below = out.get(key)
        out[key] = merged(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return out


def train_one(arm: str, seed: int, steps: int, runs: Path) -> Row:
    """One run, or what it left behind."""
    import klent

    name = f"{arm.replace(' ', '-')}-seed{seed}-steps{steps}"
    changes = merged(BASE, ARMS[arm]) | {"seed": seed, "steps": steps}
    run = klent.train(str(RECIPE), runs=str(runs), name=name, resume=True, quiet=True, **changes)
    folder = Path(run.path)
    before, *_, after = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    late = metrics[-max(1, steps // 4) :]
    kl = [row["kl/reference"] * row["completion/length"] for row in late]
    return {
        "arm": arm,
        "seed": seed,
        "steps": steps,
        "before": before["accuracy"],
        "after": after["accuracy"],
        "kl_completion": round(float(np.mean(kl)), 4),
        "explained": round(float(np.mean([row.get("value/explained", np.nan) for row in late])), 4),
    }


def plan(arms: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Seed by seed, so that an interrupted study has whole seeds."""
    for seed in seeds:
        yield from ((arm, seed) for arm in arms)


def interval(values: Sequence[float]) -> str:
    """Mean with its 95 % interval over seeds."""
    from klent.kit.student import t_bound

    found = np.asarray(values, dtype=float)
    if len(found) < 2:
        return f"{found.mean():.3f}"
    half = t_bound(0.05, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return f"{found.mean():.3f} [{found.mean() - half:.3f}, {found.mean() + half:.3f}]"


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """One line per arm: accuracy after, less the base's on the same seeds, KL, and what the critic explains."""
    after = {(row["arm"], row["seed"]): float(row["after"]) for row in rows}
    lines = [
        "| arm | held-out accuracy | less `base` | KL per completion, nats | explained |",
        "|---|---|---|---|---|",
    ]
    for arm in (name for name in ARMS if any(row["arm"] == name for row in rows)):
        here = [row for row in rows if row["arm"] == arm]
        less = [
            after[arm, row["seed"]] - after["base", row["seed"]]
            for row in here
            if ("base", row["seed"]) in after
        ]
        cells = [
            interval([float(row[key]) for row in here]) for key in ("after", "kl_completion", "explained")
        ]
        apart = interval(less) if less and arm != "base" else ""
        lines.append(f"| {arm} | {cells[0]} | {apart} | {cells[1]} | {cells[2]} |")
    return lines


def main() -> None:
    """Train what is missing and write the file, or print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/ppo_details"))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        with open(FILE, encoding="utf-8", newline="") as lines:
            print("\n".join(table(list(csv.DictReader(lines)))))
        return
    rows = [
        train_one(arm, seed, options.steps, options.runs) for arm, seed in plan(options.arms, options.seeds)
    ]
    scratch = FILE.with_suffix(".csv.part")
    with open(scratch, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(scratch, FILE)
    print("\n".join(table([{key: str(value) for key, value in row.items()} for row in rows])))


if __name__ == "__main__":
    main()

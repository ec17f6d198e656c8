"""Reward against exact sequence KL: terms about sequences and about tokens at equal coefficients, on the small model.

    python examples/small_model/pretrain.py           # once: writes runs/small_model, see README.md
    python examples/small_model/front.py              # trains what is missing, then writes front.csv; an hour
    python examples/small_model/front.py --arms token_kl --coefs 0.1 --seeds 0 1
    python examples/small_model/front.py --report     # prints the tables of front.csv
    python examples/small_model/front.py --on smollm2 # the same on SmolLM2's sums: front_smollm2.csv; an hour or two

Dr. GRPO with four optimizer steps per step, so that three of four are off-policy; the constant in the average keeps
every term's sum over a completion. The three arms differ in one thing at a time: ``sequence_kl`` answers for what a
token leads to, ``token_kl`` is the same exact KL at each token without that, ``kl_in_loss`` estimates it from the
sampled token. After training the reward is that of held-out problems and the KL the exact one along the policy's own
completions, nats per completion. What is printed varies over seeds.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
ARMS = ("sequence_kl", "token_kl", "kl_in_loss")
SEEDS = (0, 1, 2, 3, 4)
Row = dict[str, float | str]
Array = NDArray[np.float64]


class Setting(NamedTuple):
    """A model and a task on which the front is measured."""

    file: Path
    """The committed runs."""
    recipe: str
    arms: tuple[str, ...]
    coefs: tuple[float, ...]
    steps: int
    changes: dict[str, object]
    """Of the recipe, in every run."""


SETTINGS = {
    "small": Setting(
        HERE / "front.csv",
        str(HERE / "recipe.yaml"),
        ARMS,
        (0.1, 0.3),
        30,
        {"task": {"seed": 0}, "eval": {"problems": 100, "samples": 4, "every": 0}},
    ),
    "smollm2": Setting(
        HERE / "front_smollm2.csv",
        "quickstart",
        ARMS[:2],
        (0.05, 0.2),
        10,
        {
            "task": {"seed": 0},
            "prompts_per_step": 4,
            "group_size": 4,
            "optimizer": {"lr": 4e-5},
            "update": {"minibatches": 4},
            "eval": {"problems": 64, "samples": 2, "every": 0, "temperatures": []},
        },
    ),
}


def train_one(on: Setting, arm: str, coef: float, seed: int, steps: int, runs: Path) -> Row:
    """One run, or what it left behind."""
    import klent
    from klent.config import load_recipe
    from klent.studies.compare.divergence import write_divergence

    name = f"{arm}-{coef:g}-seed{seed}"
    folder = runs / name
    term = {arm: {"coef": coef}} if coef else {}
    changes: dict[str, object] = {
        "method": "dr_grpo",
        "loss": term,
        "steps": steps,
        "seed": seed,
        "checkpoint": {"every": 0},
        **on.changes,
    }
    if not (folder / "compare_eval.json").is_file():
        klent.train(on.recipe, runs=runs, name=name, resume=True, quiet=True, **changes)
        write_divergence(load_recipe(str(folder / "config.yaml"), []), folder)
    apart = json.loads((folder / "compare_eval.json").read_text())
    before, *_, after = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "arm": arm if coef else "no KL",
        "coef": coef,
        "seed": seed,
        "steps": steps,
        "reward_before": before["accuracy"],
        "reward": after["accuracy"],
        "kl_completion": round(apart["kl/base_completion"], 5),
        "kl_token": round(apart["kl/base"], 6),
        "entropy": round(metrics[-1]["policy/entropy"], 5),
        "length": round(metrics[-1]["completion/length"], 3),
        "ess": round(metrics[-1].get("sequence/ess", float("nan")), 4),
    }


def plan(
    arms: Sequence[str], coefs: Sequence[float], seeds: Sequence[int], *, control: bool
) -> Iterator[tuple[str, float, int]]:
    """Seed by seed, so that an interrupted study has whole seeds."""
    for seed in seeds:
        if control:
            yield "no", 0.0, seed
        yield from ((arm, coef, seed) for coef, arm in product(coefs, arms))


def read(file: Path = SETTINGS["small"].file) -> list[dict[str, str]]:
    """The committed runs."""
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def interval(values: Array) -> str:
    """Mean with its 95 % interval over seeds."""
    from klent.kit.student import t_bound

    half = t_bound(0.05, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def column(rows: Sequence[dict[str, str]], arm: str, coef: str, name: str) -> Array:
    """A number of every seed, in their order."""
    here = [row for row in rows if (row["arm"], row["coef"]) == (arm, coef)]
    return np.array([float(row[name]) for row in sorted(here, key=lambda row: int(row["seed"]))])


def arms_of(rows: Sequence[dict[str, str]]) -> list[str]:
    """The terms that were run, in the order of ARMS."""
    return [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]


def coefficients(rows: Sequence[dict[str, str]]) -> list[str]:
    """Of the terms, as written, in order."""
    return sorted({row["coef"] for row in rows if float(row["coef"])}, key=float)


def at_equal_coefficient(rows: Sequence[dict[str, str]]) -> list[list[str]]:
    """Per coefficient and arm: reward, KL, and what both add up to; the last against sequence_kl, paired by seed."""
    table = []
    arms = arms_of(rows)
    for coef in coefficients(rows):
        total = {
            arm: column(rows, arm, coef, "reward") - float(coef) * column(rows, arm, coef, "kl_completion")
            for arm in arms
        }
        for arm in arms:
            cells = [interval(column(rows, arm, coef, name)) for name in ("reward", "kl_completion")]
            less = "" if arm == arms[0] else interval(total[arms[0]] - total[arm])
            table.append([coef, f"`{arm}`", *cells, interval(total[arm]), less])
    return table


def at_equal_kl(rows: Sequence[dict[str, str]], points: Sequence[float] | None = None) -> list[list[str]]:
    """Reward at the same KL, interpolated in its logarithm along each seed's own front; no point outside of it.

    A front ends in the run without a KL term where there is one: that is coefficient 0 of every term.
    """
    arms = arms_of(rows)
    seeds = sorted({int(row["seed"]) for row in rows})
    fronts = {}
    for arm, seed in product(arms, seeds):
        here = [row for row in rows if row["arm"] in (arm, "no KL") and int(row["seed"]) == seed]
        pairs = sorted((float(row["kl_completion"]), float(row["reward"])) for row in here)
        fronts[arm, seed] = np.array(pairs)
    low = max(front[0, 0] for front in fronts.values())
    high = min(front[-1, 0] for front in fronts.values())
    if low >= high:
        return []
    grid = np.geomspace(low, high, 5)[1:-1] if points is None else np.array(points)
    table = []
    for kl in grid:
        reward = {
            arm: np.array(
                [np.interp(np.log(kl), np.log(fronts[arm, s][:, 0]), fronts[arm, s][:, 1]) for s in seeds]
            )
            for arm in arms
        }
        apart = [interval(reward[arms[0]] - reward[arm]) for arm in arms[1:]]
        table.append([f"{kl:.3f}", *(interval(reward[arm]) for arm in arms), *apart])
    return table


def report(rows: Sequence[dict[str, str]]) -> None:
    """Both tables as text."""
    for table in (at_equal_coefficient(rows), at_equal_kl(rows)):
        print("\n".join("  ".join(f"{cell:>24}" for cell in row) for row in table), "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", choices=list(SETTINGS), default="small", help="model and task")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="terms; those of the setting by default")
    parser.add_argument("--coefs", nargs="+", type=float, help="likewise")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--only-arms", action="store_true", help="leave out the runs without a KL term")
    parser.add_argument("--steps", type=int, help="likewise")
    parser.add_argument("--runs", type=Path, help="folder of the runs; by default runs/front_SETTING")
    parser.add_argument("--out", type=Path, help="CSV to write (replaced); the committed one by default")
    parser.add_argument("--report", action="store_true", help="print the tables of that file")
    options = parser.parse_args()
    on = SETTINGS[options.on]
    out = options.out or on.file
    if options.report:
        report(read(out))
        return
    rows: list[Row] = []
    runs = options.runs or Path(f"runs/front_{options.on}")
    control = not options.only_arms
    todo = list(plan(options.arms or on.arms, options.coefs or on.coefs, options.seeds, control=control))
    for number, (arm, coef, seed) in enumerate(todo, 1):
        rows.append(train_one(on, arm, coef, seed, options.steps or on.steps, runs))
        print(f"{number}/{len(todo)}", *(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        with open(out, "w", encoding="utf-8", newline="") as lines:
            writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    report(read(out))


if __name__ == "__main__":
    sys.exit(main())

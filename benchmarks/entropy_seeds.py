"""Do klent and TRL lose entropy alike? Many sampling seeds of each, and TRL on klent's own completions.

    python benchmarks/entropy_seeds.py --peer-python ../trl/bin/python
    python benchmarks/entropy_seeds.py --summary                       # what the committed files say

The policy is a Llama of 0.1 million parameters that was pretrained here to repeat the first of two digits, in four
ways and mostly wrong, so that it has an entropy to lose. Two experiments on the same problems in the same
order, with the same loss (GRPO, mean over sequences of the mean over tokens, no KL term), AdamW, a rate that falls
to 0, and one update per step:

- *seeds*: ``--seeds`` runs of each trainer that differ in what they sample alone. Of every step: reward, length,
  the entropy that the trainer logs, and `surprise`, the sum over sampled tokens of ``-log p - H``. Its mean is 0
  where tokens are drawn from the policy whose entropy is logged, which tests the sampler. The trained models are
  measured by one scorer, `klent.evaluate`, on all 100 problems.
- *replay*: TRL is given klent's completions of every step instead of its own. Then the trainers differ in their
  arithmetic alone, and gradients and weights are compared after each step.

The peer needs `pip install trl==1.16.0` and klent importable. Each trainer runs on one thread.
"""

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from entropy_workers import WORKERS, Rows, pretrain, recipe_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
AT_ONCE = 4  # seeds in one process
LAST = 5  # steps whose mean is an end
MEASURES = {
    "entropy": "entropy, all steps",
    "entropy_end": f"entropy, last {LAST} steps",
    "final_entropy": "entropy, trained model",
    "reward": "reward, all steps",
    "length": "length, all steps",
    "final_accuracy": "accuracy, trained model",
}


def launch(job: dict[str, Any], python: str) -> dict[int, Rows]:
    """Rows by seed, of a process of its own."""
    folder = Path(job["folder"])
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    paths = [str(ROOT / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [python, str(HERE / "entropy_workers.py"), str(path)], env=environment, stdout=sys.stderr, cwd=ROOT
    )
    if done.returncode:
        sys.exit(f"the {job['trainer']} worker ended with {done.returncode}; is it installed in {python}?")
    return {seed: json.loads((folder / f"{job['trainer']}_{seed}.json").read_text()) for seed in job["seeds"]}


def replay(options: argparse.Namespace, pythons: dict[str, str]) -> Rows:
    """One row per step: both trainers on klent's completions."""
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        job = {"recipe": options.recipe, "set": options.set, "seeds": [0], "folder": folder, "keep": folder}
        ours, theirs = (launch(job | {"trainer": name}, pythons[name])[0] for name in WORKERS)
    same = ("reward", "entropy", "length")
    return [
        {"step": k + 1}
        | {f"{name}_{key}": row[key] for key in same for name, row in (("klent", a), ("trl", b))}
        | {key: b[key] for key in ("gradient_norm", "gradient_gap", "way", "weights_gap")}
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]


def seeds(options: argparse.Namespace, pythons: dict[str, str]) -> Iterator[tuple[dict[str, Any], Rows]]:
    """Every run: its row of ends, and its steps; a few seeds in each process."""
    for first in range(0, len(options.seeds), AT_ONCE):
        some = options.seeds[first : first + AT_ONCE]
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            job = {"recipe": options.recipe, "set": options.set, "seeds": some, "folder": folder}
            found = {name: launch(job | {"trainer": name}, python) for name, python in pythons.items()}
            for name, by_seed in found.items():
                for seed, steps in by_seed.items():
                    run = {"trainer": name, "seed": seed}
                    final = Path(folder) / f"{name}_{seed}" / "final"
                    end = means(steps) | measured(final, recipe_of(job, seed))
                    yield run | end, [run | {"step": k + 1} | row for k, row in enumerate(steps)]


def means(steps: Rows) -> dict[str, float]:
    """Of a run's steps."""
    every = {key: statistics.fmean(row[key] for row in steps) for key in ("entropy", "reward", "length")}
    return every | {"entropy_end": statistics.fmean(row["entropy"] for row in steps[-LAST:])}


def measured(model: Path, recipe: Any) -> dict[str, float]:
    """What one scorer says of a trained model: all problems, sampled by klent."""
    import klent

    found = klent.evaluate(
        str(model),
        task=str(recipe.task.data),
        reward="last_number",
        problems=100,
        samples=8,
        rollout={"max_tokens": recipe.rollout.max_tokens},
    )
    return {"final_entropy": found.entropy, "final_accuracy": found.accuracy}


def welch(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The difference of two means, and the ends of its 95% interval; variances may differ."""
    from klent.kit.student import t_bound

    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    a, b = (statistics.variance(values) / len(values) for values in (ours, theirs))
    if a + b == 0:
        return difference, difference, difference
    df = (a + b) ** 2 / (a**2 / (len(ours) - 1) + b**2 / (len(theirs) - 1))
    margin = t_bound(0.05, df) * math.sqrt(a + b)
    return difference, difference - margin, difference + margin


def summary(folder: Path) -> Iterator[str]:
    """The tables of docs/log.md, from the committed files."""
    runs, steps, again = (read(folder / f"entropy_seeds{suffix}.csv") for suffix in ("", "_steps", "_replay"))
    counts = {name: sum(row["trainer"] == name for row in runs) for name in WORKERS}
    yield f"| {counts['klent']} runs of klent, {counts['trl']} of TRL | klent | TRL | klent minus TRL |"
    yield "|---|---|---|---|"
    for key, shown in MEASURES.items():
        values = [[float(row[key]) for row in runs if row["trainer"] == name] for name in WORKERS]
        cells = [f"{statistics.fmean(v):.4f} ± {statistics.stdev(v):.4f}" for v in values]
        middle, low, high = welch(*values)
        yield f"| {shown} | {cells[0]} | {cells[1]} | {middle:+.4f} [{low:+.4f}, {high:+.4f}] |"
    yield ""
    for name in WORKERS:
        mine = [row for row in steps if row["trainer"] == name]
        total, squares, tokens = (
            sum(float(row[key]) for row in mine) for key in ("surprise", "surprise_squares", "tokens")
        )
        yield (
            f"{name}: -log p - H is {total / tokens:+.5f} nats on average over {tokens:,.0f} tokens, standard "
            f"error {math.sqrt(squares) / tokens:.5f}"
        )
    yield ""
    yield from (f"replay: {sentence}" for sentence in agreement(again))


def agreement(replayed: Rows) -> Iterator[str]:
    """What the replay found, in the steps in which klent has a gradient and in the others."""
    rows = [{key: float(value) for key, value in row.items()} for row in replayed]
    updates = [row for row in rows if row["gradient_norm"] > 0]
    gaps = [row["gradient_gap"] for row in updates]
    same = max(abs(row[f"klent_{key}"] - row[f"trl_{key}"]) for row in rows for key in ("reward", "length"))
    yield (
        f"in {len(updates)} of {len(rows)} steps an update, gradients {min(gaps):.1e} to {max(gaps):.1e} of "
        "their norm apart,"
    )
    yield f"weights at most {max(row['weights_gap'] for row in updates):.1e} of the way from the start apart,"
    apart = max(abs(row["klent_entropy"] - row["trl_entropy"]) for row in rows)
    yield f"rewards and lengths at most {same:.1g} apart, entropies {apart:.1e} nats"
    for row in rows:
        if row["gradient_norm"] == 0:
            yield (
                f"step {row['step']:.0f} has no gradient: klent stands still, TRL's momentum moves it by "
                f"{row['weights_gap']:.1e} of the way"
            )


def read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rounded(rows: Rows) -> Rows:
    return [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", help="another one than that of the digits")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the recipe")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=list(range(24)), help="none = the replay alone"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has TRL")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSVs (replaced)")
    parser.add_argument("--scratch", type=Path, help="folder for weights, 1 GB for the small model")
    parser.add_argument("--summary", action="store_true", help="print the tables of the files that are there")
    options = parser.parse_args()
    if not options.summary:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            measure(options, Path(folder))
    print("\n".join(summary(options.out)))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Both experiments; the files are written as results come."""
    from common import write

    pythons = {"klent": sys.executable, "trl": options.peer_python}
    if options.recipe is None:
        options.recipe = str(pretrain(folder / "digits", options.steps, options.lr))
    write(options.out / "entropy_seeds_replay.csv", rounded(replay(options, pythons)))
    runs: Rows = []
    steps: Rows = []
    for run, rows in seeds(options, pythons):
        runs.append(run)
        steps += rows
        write(options.out / "entropy_seeds.csv", rounded(runs))
        write(options.out / "entropy_seeds_steps.csv", rounded(steps))
        print(json.dumps(rounded([run])[0]), flush=True)


if __name__ == "__main__":
    main()

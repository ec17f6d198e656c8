"""What weights for the sampler are worth where the sampler is wrong on purpose, by mode of `rollout.mismatch`.

    python examples/small_model/pretrain.py              # once: writes runs/small_model, see README.md
    python examples/small_model/wrong_sampler.py         # trains what is missing, writes wrong_sampler.csv
    python examples/small_model/wrong_sampler.py --samplers int4 --modes none truncate --seeds 0 1
    python examples/small_model/wrong_sampler.py --report # prints the tables of wrong_sampler.csv

The trainer computes in float32. The sampler is a copy of its weights, renewed before every step: in bfloat16, or with
its linear layers rounded to 4 or 3 bits, one scale per output. It reports the log-probabilities that it samples from.
Held-out problems are answered with the trainer's own weights. ``none`` has a weight of exactly 1 and measures the
same things. A run that was cut goes on, and one that is done is not repeated. What is printed varies over seeds;
differences are paired by seed.
"""

import argparse
import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from study_csv import interval
from worse_copies import take_over, worse_copy

HERE = Path(__file__).resolve().parent
FILE = HERE / "wrong_sampler.csv"
MODES: dict[str, dict[str, object]] = {
    "none": {"mode": "truncate", "low": 1.0, "high": 1.0},
    "truncate": {"mode": "truncate"},
    "mask_token": {"mode": "mask_token"},
    "mask_sequence": {"mode": "mask_sequence"},
    "icepop": {"mode": "icepop"},
}
ARMS: dict[str, tuple[str, ...]] = {
    "exact": ("none",),
    "bfloat16": ("none", "truncate", "mask_sequence"),
    "int4": (),
    "int3": tuple(MODES),
}
"""Sampler -> the modes that are run where none are named; an exact sampler needs no weights."""
CHANGES: dict[str, object] = {
    "eval": {"problems": 200, "samples": 4, "every": 0},
    "checkpoint": {"every": 0},
}
MEASURED = ("mismatch/log_ratio", "mismatch/kept", "mismatch/ess")
Row = dict[str, float | str]


def use(sampler: str) -> None:
    """From here on runs of this process sample so; what answers held-out problems stays exact."""
    from klent.rollout.transformers_engine import TransformersEngine
    from klent.runs import build
    from klent.runs.language import build_language_parts

    class Wrong(TransformersEngine):
        """Samples from a worse copy, and gives no certificate: one would stop the run."""

        def sync(self, policy):
            take_over(self.loaded.model, policy.model, sampler)
            return None

    def parts(recipe, around):
        made = build_language_parts(recipe, around)
        if sampler == "exact":
            return made
        worse = replace(made.loaded, model=worse_copy(made.loaded.model, sampler))
        return replace(made, engine=Wrong(worse, made.engine.options))

    build.BUILDERS["causal_lm"] = parts


def train_one(sampler: str, mode: str, seed: int, steps: int, runs: Path) -> Row:
    """One run, or what it left behind."""
    import klent

    use(sampler)
    name = f"{sampler}-{mode}-seed{seed}-steps{steps}"
    changes = CHANGES | {"seed": seed, "steps": steps, "task": {"seed": 0}}
    rollout = {"mismatch": MODES[mode]}
    klent.train(
        str(HERE / "recipe.yaml"),
        runs=str(runs),
        name=name,
        resume=True,
        quiet=True,
        rollout=rollout,
        **changes,
    )
    before, *_, after = [json.loads(line) for line in (runs / name / "eval.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
    means = {key: float(np.mean([row[key] for row in metrics])) for key in MEASURED}
    return {
        "sampler": sampler,
        "mode": mode,
        "seed": seed,
        "steps": steps,
        "before": before["accuracy"],
        "after": after["accuracy"],
        "entropy": round(after["entropy"], 4),
        **{key.removeprefix("mismatch/"): round(value, 6) for key, value in means.items()},
    }


def plan(
    samplers: Sequence[str], modes: Sequence[str] | None, seeds: Sequence[int]
) -> Iterator[tuple[str, str, int]]:
    """Seed by seed, so that an interrupted study has whole seeds."""
    for seed in seeds:
        for sampler in samplers:
            chosen = ARMS[sampler] if modes is None or sampler == "exact" else modes
            yield from ((sampler, mode, seed) for mode in chosen)


def read() -> list[dict[str, str]]:
    """The committed runs."""
    with open(FILE, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def column(rows: Sequence[dict[str, str]], sampler: str, mode: str, key: str) -> np.ndarray:
    """One number of an arm, by seed."""
    here = [row for row in rows if row["sampler"] == sampler and row["mode"] == mode]
    return np.array([float(row[key]) for row in sorted(here, key=lambda row: int(row["seed"]))])


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """One line per arm: what the sampler is off, what the weights leave, and accuracy less without weights."""
    lines = [
        "| sampler | `mode` | gap, nats per token | kept | effective share | held-out accuracy | less no weights "
        "| less the exact sampler |",
        "|---" * 8 + "|",
    ]
    exact = column(rows, "exact", "none", "after")
    for sampler in ARMS:
        for mode in MODES:
            after = column(rows, sampler, mode, "after")
            if not len(after):
                continue
            none = column(rows, sampler, "none", "after")
            cells = [
                f"{column(rows, sampler, mode, 'log_ratio').mean():.2g}",
                f"{column(rows, sampler, mode, 'kept').mean():.3f}",
                f"{column(rows, sampler, mode, 'ess').mean():.2f}",
                interval(after),
                "" if mode == "none" else interval(after - none, sign=True),
                "" if sampler == "exact" else interval(after - exact, sign=True),
            ]
            shown = "none" if mode == "none" else f"`{mode}`"
            lines.append(f"| {sampler} | {shown} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Train what is missing and write the file, or print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samplers", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--modes", nargs="+", choices=list(MODES), help="those of ARMS by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/wrong_sampler"))
    parser.add_argument("--out", type=Path, default=FILE, help="CSV to write (replaced)")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        print("\n".join(table(read())))
        return
    rows: list[Row] = []
    for arm in plan(options.samplers, options.modes, options.seeds):
        rows.append(train_one(*arm, options.steps, options.runs))
        print(*(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        scratch = options.out.with_suffix(".csv.part")
        with open(scratch, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(scratch, options.out)
    print("\n".join(table([{key: str(value) for key, value in row.items()} for row in rows])))


if __name__ == "__main__":
    main()

"""The numbers of a finished study, as `klent study` writes them to study.csv, and means over its seeds."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from klent.kit.student import t_bound

Rows = dict[str, dict[int, dict[str, float]]]
"""Stage -> seed -> measure -> value."""


def read(file: Path) -> Rows:
    """The numbers of the seeds that every stage has."""
    rows: Rows = {}
    with open(file, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            seeds = rows.setdefault(row["stage"], {})
            seeds.setdefault(int(row["seed"]), {})[row["measure"]] = float(row["value"])
    whole = set.intersection(*(set(seeds) for seeds in rows.values()))
    return {stage: {seed: seeds[seed] for seed in sorted(whole)} for stage, seeds in rows.items()}


def interval(values: Sequence[float], digits: int = 3, *, sign: bool = False) -> str:
    """Mean with its 95 % interval over seeds, Student's t; the mean alone of one seed."""
    array, form = np.asarray(values, dtype=float), f"{'+' if sign else ''}.{digits}f"
    if len(array) < 2:
        return f"{array.mean():{form}}"
    half = t_bound(0.05, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return f"{array.mean():{form}} [{array.mean() - half:{form}}, {array.mean() + half:{form}}]"

"""The tables of the study of arms, from arms.csv.

    python examples/games/arms_table.py

Brackets are 95 % intervals over seeds, Student's t; differences are paired by seed. With one seed there is none.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "unsupervised"), str(HERE.parents[1] / "benchmarks")]

from stitching import interval  # noqa: E402
from table import markdown  # noqa: E402

FILE = HERE / "arms.csv"
PAIRS = (
    ("credit by turn less by episode", "GRPO", "GRPO, episode"),
    ("offline, then online, less online alone", "GRPO", "GRPO, alone"),
    ("the best 30 %, then online, less all, then online", "GRPO, best 30 %", "GRPO"),
    ("offline, then online, less offline", "GRPO", "cloning"),
)
Row = dict[str, str]


def read(file: Path = FILE) -> list[Row]:
    """The rows so far."""
    if not file.exists():
        return []
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def column(
    rows: Sequence[Row], world: str, arm: str, beta: str = "", name: str = "return"
) -> dict[str, float]:
    """A number of every seed; nothing where it was not measured."""
    here = [row for row in rows if (row["world"], row["arm"], row["beta"]) == (world, arm, beta)]
    return {row["seed"]: float(row[name]) for row in here if row[name]}


def difference(left: dict[str, float], right: dict[str, float]) -> str:
    """Mean and interval of left less right, paired by seed."""
    return interval(np.array([left[seed] - right[seed] for seed in left if seed in right]))


def spread(values: dict[str, float]) -> str:
    """Mean and interval; empty where there is nothing."""
    return interval(np.array(list(values.values()))) if values else ""


def table(rows: Sequence[Row], world: str) -> str:
    """Every arm of a world: return, return less cloning's, error of its values; then what there was to gain."""
    body = []
    cloned = column(rows, world, "cloning")
    for arm, beta in dict.fromkeys((r["arm"], r["beta"]) for r in rows if r["world"] == world):
        earned = column(rows, world, arm, beta)
        less = "" if arm == "cloning" else difference(earned, cloned)
        body.append([arm, beta, spread(earned), less, spread(column(rows, world, arm, beta, "q_error"))])
    for name, key in (("mean of the log", "log"), ("its best episode", "best"), ("V\\*", "optimal")):
        body.append([f"*{name}*", "", spread(column(rows, world, "cloning", name=key)), "", ""])
    return markdown(["arm", "beta", "return", "less cloning's", "`q_error`"], body)


def online(rows: Sequence[Row]) -> str:
    """Of every world: what credit by turn, and what beginning offline, changes in what is learnt online."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    body = [
        [what, *(difference(column(rows, w, one), column(rows, w, other)) for w in worlds)]
        for what, one, other in PAIRS
    ]
    return markdown(["return", *worlds], body)


def main() -> None:
    rows = read()
    for world in dict.fromkeys(row["world"] for row in rows):
        seeds = {row["seed"] for row in rows if row["world"] == world}
        print(f"{world}, seeds {', '.join(sorted(seeds))}\n\n{table(rows, world)}\n")
    print(online(rows))


if __name__ == "__main__":
    main()

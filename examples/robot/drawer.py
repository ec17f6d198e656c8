"""The tables of docs/robot.md, from the committed files of table.py: python examples/robot/drawer.py"""

import csv
import math
from pathlib import Path

import numpy as np

from klent.kit.student import t_bound

HERE = Path(__file__).parent
Arm = tuple[str, str, str]


def read(name: str) -> dict[Arm, dict[int, float]]:
    """(arm, what pairs are ordered by, gamma) -> seed -> share of episodes solved."""
    arms: dict[Arm, dict[int, float]] = {}
    with open(HERE / name, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            share = float(row["solved"]) / float(row["episodes"])
            arms.setdefault((row["arm"], row["by"], row["gamma"]), {})[int(row["seed"])] = share
    return arms


def margin(values: list[float]) -> float:
    """Half of the 95 % interval of a mean over seeds, Student's t."""
    return t_bound(0.05, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def label(arm: Arm) -> str:
    """How the table calls an arm: ``PPL expected, gamma 0.9``."""
    name, _, gamma = arm
    if name == "cpl unbiased":
        return "CPL, `rejected_weight: 1`"
    first, _, rest = name.partition(" ")
    return " ".join([first.upper(), rest]).strip() + (f", gamma {gamma}" if first == "ppl" else "")


def table(name: str) -> str:
    """Share solved per seed, its mean, and the difference to the cloned policy of the same seeds."""
    arms = read(name)
    cloned = arms["bc", "", ""]
    seeds = sorted(cloned)
    heads = (
        f"| arm | pairs ordered by | seeds {', '.join(map(str, seeds))} | mean | less the cloned policy's |"
    )
    lines = [heads, "|---|---|---|---|---|"]
    for arm, solved in arms.items():
        shares = [solved[seed] for seed in seeds]
        apart = [solved[seed] - cloned[seed] for seed in seeds]
        less = "" if arm[0] == "bc" else f"{np.mean(apart):+.2f} ± {margin(apart):.2f}"
        each = ", ".join(f"{share:.2f}" for share in shares)
        lines.append(f"| {label(arm)} | {arm[1]} | {each} | {np.mean(shares):.2f} | {less} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table("drawer_open.csv"), table("drawer_open_same.csv"), sep="\n\n")

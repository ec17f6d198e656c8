"""Does the law R = -a exp(H) + b, fitted to the first third of a run, predict the rest?

    python examples/small_model/law.py runs/small-compare/grpo-seed*

Root mean square error over the last two thirds of every run, in units of reward:

    law        fitted to the first third, given the entropy of the later steps
    constant   the mean reward of the first third, continued
    line       a straight line through the first third, continued
    noise      what no smooth curve can predict: half the mean square between neighbouring steps

and R² of the law over the whole run.
"""

import sys
from pathlib import Path

import numpy as np

from klent.io.files import read_jsonl
from klent.measure.law import fit_law, points


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def judge(folder: Path) -> dict[str, float] | None:
    """The errors of one run; None where the first third has no fit."""
    rows = list(read_jsonl(folder / "metrics.jsonl"))
    third = len(rows) // 3
    early, whole = fit_law(rows[:third]), fit_law(rows)
    if early is None or whole is None:
        return None
    _, entropy, reward = (np.array(column) for column in zip(*points(rows), strict=True))
    steps = np.arange(len(reward))
    slope, start = np.polyfit(steps[:third], reward[:third], 1)
    rest = reward[third:]
    return {
        "law": rms(rest - (early.b - early.a * np.exp(entropy[third:]))),
        "constant": rms(rest - reward[:third].mean()),
        "line": rms(rest - (start + slope * steps[third:])),
        "noise": rms(np.diff(rest)) / np.sqrt(2),
        "R2": whole.r2,
    }


def main() -> None:
    found = {folder: judge(Path(folder)) for folder in sys.argv[1:]}
    kept = {folder: row for folder, row in found.items() if row}
    if not kept:
        sys.exit("name run folders with metrics of at least 12 steps: law.py runs/NAME-compare/grpo-seed*")
    names = list(next(iter(kept.values())))
    print(f"{'run':<40}" + "".join(f"{name:>10}" for name in names))
    for folder, row in kept.items():
        print(f"{Path(folder).name:<40}" + "".join(f"{row[name]:>10.3f}" for name in names))
    means = [np.mean([row[name] for row in kept.values()]) for name in names]
    print(f"{'mean':<40}" + "".join(f"{mean:>10.3f}" for mean in means))


if __name__ == "__main__":
    main()

"""Plots the output of `klent controls`: every arm beside the training-free baselines, and accuracy by step.

    python examples/unsupervised/figures.py arms OUT.png NAME=CONTROLS.csv ...
    python examples/unsupervised/figures.py steps OUT.png NAME=FOLDER_OF_RUNS ...

A small dot is a seed, a large one their mean; bars are 95 % intervals over problems. `steps` reads every
`eval.jsonl` of a folder's runs: of the arms of `klent controls` only `as written` has one.
"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from klent.kit.statistics import wilson
from klent.studies.controls import BEFORE, Rows, read_csv

SAMPLED, GREEDY, VOTE = "#2b6cb0", "#c05621", "#718096"
CURVES = (
    ("accuracy", "sampled", SAMPLED),
    ("accuracy@0", "greedy", GREEDY),
    ("kept", "kept (needs no label)", VOTE),
)


def draw_arms(axis: Axes, title: str, rows: Rows) -> None:
    """Accuracy of each arm at temperature 1 and greedily; lines: the model before training."""
    names = list(dict.fromkeys(str(row["arm"]) for row in rows))
    for temperature, color, shift, label in (
        (1.0, SAMPLED, -0.14, "temperature 1"),
        (0.0, GREEDY, 0.14, "greedy"),
    ):
        for place, name in enumerate(names):
            own = [row for row in rows if (row["arm"], row["temperature"]) == (name, temperature)]
            accuracy = [row["accuracy"] for row in own]
            mean, height = statistics.fmean(accuracy), place + shift
            low, high = wilson(mean, own[0]["problems"])
            axis.plot([low, high], [height] * 2, color=color, linewidth=1.4, alpha=0.6)
            axis.plot(accuracy, [height] * len(own), ".", color=color, markersize=4)
            axis.plot(mean, height, "o", color=color, markersize=6, label=label if place == 0 else None)
            if name == BEFORE:
                axis.axvline(mean, color=color, linestyle=":", linewidth=1)
    vote = max(row["majority"] for row in rows if row["arm"] == BEFORE)
    axis.axvline(vote, color=VOTE, linestyle="--", linewidth=1, label="best vote before training")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("held-out pass@1")
    axis.set_title(title, fontsize=10)


def draw_steps(axis: Axes, title: str, folder: Path) -> None:
    """Accuracy of every seed by step: sampled at the recipe's temperature, and greedily."""
    for file in sorted(folder.glob("*/eval.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        first = axis.get_legend_handles_labels()[1] == []
        for key, label, color in CURVES:
            style = "--" if color == VOTE else "-"
            values = [row[key] for row in rows]
            axis.plot(
                [row["step"] for row in rows], values, style, color=color, label=label if first else None
            )
    axis.set_ylim(0, 1)
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(title, fontsize=10)


def main(kind: str, out: str, *named: str) -> None:
    pairs = [pair.split("=", 1) for pair in named]
    rows, columns = -(-len(pairs) // 2), min(len(pairs), 2)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.2 * rows + 0.4), squeeze=False)
    for axis in axes.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis, (title, path) in zip(axes.flat, pairs, strict=False):
        if kind == "arms":
            draw_arms(axis, title, read_csv(Path(path)))
        else:
            draw_steps(axis, title, Path(path))
        axis.grid(alpha=0.2)
    if kind == "steps":
        axes[0][0].set_ylabel("held-out accuracy")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("arms", "steps"):
        sys.exit(__doc__)
    main(*sys.argv[1:])

"""What each arm of the forgetting study keeps, at an equal score on the new task.

    klent study examples/small_model/forgetting.yaml --seeds 3
    python examples/small_model/forgetting_table.py runs/forgetting   # copies study.csv, writes the picture
    python examples/small_model/forgetting_table.py                   # the tables, from forgetting.csv

Every arm was trained at several rates. From the untrained model over its rates, slowest first, an arm of a seed
draws a path of (score on the new task, what is kept); where it first reaches the score that is asked for, what is
kept is read by linear interpolation. An arm that does not reach it in every seed is not compared, and the table says
so. Intervals are 95 % over seeds, Student's t; differences are paired by seed.
"""

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import study_csv
from study_csv import Rows, interval

HERE = Path(__file__).resolve().parent
FILE = HERE / "forgetting.csv"
PICTURE = HERE.parents[1] / "docs" / "images" / "forgetting.png"
SCORE = "problems/reward"
FIRST = "grpo"
OLD = ("short", "long", "early")
ARMS = {
    "sft_gold": "SFT, gold answers",
    "sft_lora1": "SFT, gold, LoRA rank 1",
    "sft_lora16": "SFT, gold, LoRA rank 16",
    "sft_own": "SFT, own right answers",
    "distill": "on-policy distillation of SFT, gold",
    "dpo": "DPO",
    "reinforce": "REINFORCE",
    "grpo": "GRPO",
    "grpo_lora1": "GRPO, LoRA rank 1",
    "grpo_lora16": "GRPO, LoRA rank 16",
    "grpo_forks": "GRPO on the 20 % of highest entropy",
    "grpo_sure": "GRPO on the 80 % of lowest entropy",
    "ppo": "PPO",
}
KEPT = {
    "pretraining/nats": "texts, nats per character",
    "old/reward": "old tasks, reward",
    "old/kl_forward": "old tasks, KL from the untrained model",
    "problems/kl_reverse": "new task, KL to the untrained model",
    "problems/kl_forward": "new task, KL from the untrained model",
    "weights/distance": "distance of the weights",
}
Row = Mapping[str, float]


def read(file: Path = FILE) -> Rows:
    """The numbers of a study, with the means over the old tasks."""
    rows = study_csv.read(file)
    for seeds in rows.values():
        for values in seeds.values():
            for name in ("reward", "kl_forward", "kl_reverse"):
                values[f"old/{name}"] = float(np.mean([values[f"{task}/{name}"] for task in OLD]))
    return rows


def path(rows: Rows, arm: str, seed: int) -> list[Row]:
    """The untrained model and an arm's runs, slowest rate first."""
    stages = [stage for stage in rows if stage.rpartition("_")[0] == arm and seed in rows[stage]]
    return [rows["base"][seed], *(rows[stage][seed] for stage in sorted(stages))]


def at_score(runs: Sequence[Row], score: float, measure: str) -> float:
    """What is kept where the path first has this score; NaN where it never does."""
    for before, after in pairwise(runs):
        low, high = before[SCORE], after[SCORE]
        if low < score <= high:
            share = (score - low) / (high - low)
            return before[measure] + share * (after[measure] - before[measure])
    return math.nan


def reached(rows: Rows, arm: str, seeds: Sequence[int]) -> list[float]:
    """The highest score of an arm's runs, seed by seed."""
    return [highest(path(rows, arm, seed)[1:])[SCORE] for seed in seeds]


def arms_of(rows: Rows) -> list[str]:
    """The arms that were run."""
    return [arm for arm in ARMS if any(stage.rpartition("_")[0] == arm for stage in rows)]


def matched(rows: Rows, score: float | None = None) -> str:
    """Every arm at one score: what it lost, and the difference to the first arm's loss on the texts."""
    seeds = sorted(rows["base"])
    score = common_score(rows) if score is None else score
    heads = [f"at a reward of {score:.2f}", "highest score", *KEPT.values(), f"texts, less {ARMS[FIRST]}"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    base = {m: interval([rows["base"][seed][m] for seed in seeds]) for m in (SCORE, *KEPT)}
    lines.append("| " + " | ".join(["untrained model", *base.values(), ""]) + " |")
    nats = next(iter(KEPT))
    first = np.array([at_score(path(rows, FIRST, seed), score, nats) for seed in seeds])
    for arm in arms_of(rows):
        best = interval(reached(rows, arm, seeds))
        runs = [path(rows, arm, seed) for seed in seeds]
        kept = {m: [at_score(run, score, m) for run in runs] for m in KEPT}
        if any(math.isnan(v) for v in kept[nats]):
            short = sum(math.isnan(v) for v in kept[nats])
            lines.append(
                f"| {ARMS[arm]} | {best} | not reached in {short} of {len(seeds)} seeds |" + " |" * len(KEPT)
            )
            continue
        apart = "" if arm == FIRST else interval((np.array(kept[nats]) - first).tolist(), sign=True)
        lines.append(
            "| " + " | ".join([ARMS[arm], best, *(interval(v) for v in kept.values()), apart]) + " |"
        )
    return "\n".join(lines)


def highest(runs: Sequence[Row]) -> Row:
    """The one with the highest score on the new task."""
    ordered = sorted(runs, key=lambda row: row[SCORE])
    return ordered[-1]


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks, ties in their mean."""
    array = np.asarray(values)
    return np.array([(array < v).sum() + (array == v).sum() / 2 for v in array])


def predictors(rows: Rows) -> str:
    """Rank correlation over all runs of a seed with what was lost on the texts, per measure."""
    seeds, stages = sorted(rows["base"]), [stage for stage in rows if stage != "base"]
    lines = ["| measure | rank correlation with the nats lost on texts |", "|---|---|"]
    for measure in (
        "problems/kl_forward",
        "problems/kl_reverse",
        "old/kl_forward",
        "weights/distance",
        SCORE,
    ):
        found = []
        for seed in seeds:
            here = [stage for stage in stages if seed in rows[stage]]
            x, y = ([rows[stage][seed][name] for stage in here] for name in (measure, "pretraining/nats"))
            found.append(float(np.corrcoef(ranks(x), ranks(y))[0, 1]))
        lines.append(f"| {KEPT.get(measure, 'new task, reward')} | {interval(found)} |")
    return "\n".join(lines)


def sharpening(rows: Rows) -> str:
    """pass@k on held-out problems of the new task, less the untrained model's, at the rate of the highest score."""
    seeds = sorted(rows["base"])
    prefix = "problems/pass@"
    ks = sorted(int(m.removeprefix(prefix)) for m in rows["base"][seeds[0]] if m.startswith(prefix))
    heads = ["arm", "pass@1", *(f"pass@{k}" for k in ks)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    measures = [SCORE, *(f"problems/pass@{k}" for k in ks)]
    lines.append(
        "| untrained | " + " | ".join(interval([rows["base"][s][m] for s in seeds]) for m in measures) + " |"
    )
    for arm in arms_of(rows):
        best = [highest(path(rows, arm, seed)[1:]) for seed in seeds]
        cells = [
            interval(
                [row[m] - rows["base"][seed][m] for row, seed in zip(best, seeds, strict=True)], sign=True
            )
            for m in measures
        ]
        lines.append("| " + " | ".join([ARMS[arm], *cells]) + " |")
    return "\n".join(lines)


def draw(rows: Rows, target: Path = PICTURE) -> None:
    """What is kept against the score, for four measures: an arm's mean path over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.6))
    seeds, colours = sorted(rows["base"]), plt.get_cmap("tab20").colors
    for panel, measure in zip(panels, ("pretraining/nats", "old/reward", "problems/kl_forward"), strict=True):
        for arm, colour in zip(arms_of(rows), colours, strict=False):
            runs = [path(rows, arm, seed) for seed in seeds]
            x, y = (
                [np.mean([run[i][m] for run in runs]) for i in range(len(runs[0]))] for m in (SCORE, measure)
            )
            panel.plot(x, y, "o-", markersize=3.5, linewidth=1.1, color=colour, label=ARMS[arm])
        panel.set(xlabel="reward on the new task", title=KEPT[measure])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yscale("log")
    panels[2].set_yscale("symlog", linthresh=0.01)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="lower center", ncol=5, frameon=False, fontsize=8
    )
    figure.tight_layout(rect=(0, 0.16, 1, 1))
    figure.savefig(target, dpi=150)


def common_score(rows: Rows) -> float:
    """The highest score, in steps of 0.05, that GRPO and both kinds of SFT reach in every seed."""
    seeds = sorted(rows["base"])
    least = min(min(reached(rows, arm, seeds)) for arm in ("grpo", "sft_gold", "sft_own"))
    return math.floor(20 * least) / 20


def main() -> None:
    """Print the tables, after taking over a study's numbers where its folder is named."""
    if len(sys.argv) > 1:
        shutil.copyfile(Path(sys.argv[1]) / "study.csv", FILE)
        draw(read())
    rows = read()
    print(matched(rows), predictors(rows), sharpening(rows), sep="\n\n")


if __name__ == "__main__":
    main()

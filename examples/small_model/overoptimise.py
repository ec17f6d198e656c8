"""Gold and proxy against the exact KL of completions, from the file of a finished study.

    klent study examples/small_model/overoptimise.yaml --seeds 3
    python examples/small_model/overoptimise.py small_model runs/overoptimise   # keeps study.csv, draws the picture
    python examples/small_model/overoptimise.py small_model                     # the tables, from overoptimise.csv
    python examples/small_model/overoptimise.py sentiment                       # those of examples/sentiment

Gao et al., Scaling Laws for Reward Model Overoptimization, 2022, arXiv:2210.10760: with d = sqrt(KL), the gold reward
rises and falls as `d (a - b d)` for best-of-n and as `d (a - b log d)` for policies that are trained. Both are fitted
by least squares to each seed's policies of a method, of PPO and GRPO those that nothing holds back; where the curve
has its maximum inside the range of KL that was reached, the method has turned over. Intervals are 95 % over seeds.
"""

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from study_csv import Rows, interval, read

EXAMPLES = Path(__file__).resolve().parents[1]
IMAGES = EXAMPLES.parent / "docs" / "images"
METHODS = {"ppo": "PPO", "grpo": "GRPO", "dpo": "DPO", "best": "best of n"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#a0589c")  # told apart by colour-blind readers too


class Study(NamedTuple):
    """One study: its numbers, its picture, where it was judged, what its gold reward is, and policies to compare."""

    file: Path
    picture: Path
    on: str
    gold: str
    held: tuple[tuple[str, str], ...]


STUDIES = {
    "small_model": Study(
        file=EXAMPLES / "small_model" / "overoptimise.csv",
        picture=IMAGES / "overoptimise.png",
        on="problems/",
        gold="the number is right",
        held=(("ppo_0p2", "ppo_0_10"), ("grpo_0p2", "grpo_0_10"), ("grpo_0p8", "grpo_0_10")),
    ),
    "sentiment": Study(
        file=EXAMPLES / "sentiment" / "overoptimise.csv",
        picture=IMAGES / "sentiment.png",
        on="prompts/",
        gold="VADER's score",
        held=(("ppo_0p1", "ppo_0"), ("grpo_0p1", "grpo_0")),
    ),
}


class Point(NamedTuple):
    """One policy: KL from the untrained model in nats, and what gold and proxy rose by."""

    kl: float
    gold: float
    proxy: float


def measured(study: Study) -> Rows:
    """The study's numbers, under the measures' own names."""
    rows = read(study.file)
    return {
        stage: {
            seed: {name.removeprefix(study.on): value for name, value in numbers.items()}
            for seed, numbers in seeds.items()
        }
        for stage, seeds in rows.items()
    }


def point(rows: Rows, stage: str, seed: int) -> Point:
    """A trained policy, against the untrained model of its seed, which the seed's own reward model scored too."""
    after, before = rows[stage][seed], rows["base"][seed]
    gold, proxy = (after[name] - before[name] for name in ("reward", "model"))
    return Point(after["kl_reverse"], gold, proxy)


def best_of(rows: Rows, n: int, seed: int) -> Point:
    """Choosing among n answers of the untrained model by the proxy; its KL is at most log n - (n-1)/n."""
    base = rows["base"][seed]
    gold, proxy = base[f"best_of_{n}"], base[f"best_of_{n}_model"]
    return Point(math.log(n) - (n - 1) / n, gold - base["reward"], proxy - base["model"])


def points(rows: Rows, method: str, seed: int) -> dict[str, Point]:
    """Every policy of a method and a seed, by its stage, in the order of the file."""
    if method == "best":
        sizes = sorted(
            int(name.removeprefix("best_of_"))
            for name in rows["base"][seed]
            if name.startswith("best_of_") and name[-1].isdigit()
        )
        return {f"best_{n}": best_of(rows, n, seed) for n in sizes}
    return {stage: point(rows, stage, seed) for stage in rows if stage.startswith(f"{method}_")}


def path(rows: Rows, method: str, seed: int) -> list[Point]:
    """The policies that a method's curve is fitted to: without a penalty where there may be one."""
    held = method in ("ppo", "grpo")
    return [p for stage, p in points(rows, method, seed).items() if not held or stage.split("_")[1] == "0"]


def shape(method: str) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The two columns that a and b multiply, for d > 0, ``[2, N]``."""
    if method == "best":
        return lambda d: np.stack([d, -d * d])
    return lambda d: np.stack([d, -d * np.log(d)])


def fit(method: str, policies: Sequence[Point]) -> tuple[float, float]:
    """a and b, by least squares on the gold reward."""
    columns = shape(method)(np.sqrt([max(p.kl, 1e-12) for p in policies]))
    a, b = np.linalg.lstsq(columns.T, np.array([p.gold for p in policies]), rcond=None)[0]
    return float(a), float(b)


def turn(method: str, a: float, b: float) -> float:
    """The KL at which the fitted gold reward is largest; infinite where it only rises, 0 where it only falls."""
    if b <= 0:
        return math.inf if a > 0 else 0.0
    d = a / (2 * b) if method == "best" else math.exp(a / b - 1)
    return max(d, 0.0) ** 2


def label(stage: str) -> str:
    """How the table names a policy."""
    method, price, *steps = stage.split("_")
    if method == "best":
        return f"best of {price}"
    value = price.replace("p", ".")
    name = {"ppo": "kl_in_reward", "grpo": "sequence_kl", "dpo": "beta"}[method]
    return f"{METHODS[method]}, {name} {value}" + (f", {steps[0]} steps" if steps else "")


def table(rows: Rows) -> str:
    """Every policy: KL, gold, proxy; differences to the untrained model."""
    lines = ["| policy | KL, nats | gold | proxy |", "|---|---|---|---|"]
    seeds = sorted(rows["base"])
    for method in METHODS:
        for stage in points(rows, method, seeds[0]):
            found = [points(rows, method, seed)[stage] for seed in seeds]
            cells = [interval([getattr(p, name) for p in found]) for name in Point._fields]
            if method == "best":
                cells[0] = f"≤ {found[0].kl:.3f}"
            lines.append("| " + " | ".join([label(stage), *cells]) + " |")
    if "gold_0" in rows:
        cells = [
            interval([getattr(point(rows, "gold_0", seed), name) for seed in seeds]) for name in Point._fields
        ]
        lines.append("| " + " | ".join(["GRPO on gold itself", *cells]) + " |")
    return "\n".join(lines)


def held(rows: Rows, pairs: Sequence[tuple[str, str]]) -> str:
    """Policies held by a KL against those that were free and stopped first, paired by seed."""
    lines = ["| policy | against | gold, less the other's | KL, less the other's |", "|---|---|---|---|"]
    for stage, other in pairs:
        both = [(point(rows, stage, seed), point(rows, other, seed)) for seed in sorted(rows["base"])]
        cells = [
            interval([getattr(a, f) - getattr(b, f) for a, b in both], sign=True) for f in ("gold", "kl")
        ]
        lines.append("| " + " | ".join([label(stage), label(other), *cells]) + " |")
    return "\n".join(lines)


def fits(rows: Rows) -> str:
    """Gao's curve of each method: its parameters, and whether a maximum lies inside what was reached."""
    lines = [
        "| method | a | b | largest KL | gold is largest at KL | turned over |",
        "|---|---|---|---|---|---|",
    ]
    seeds = sorted(rows["base"])
    for method, name in METHODS.items():
        policies = [path(rows, method, seed) for seed in seeds]
        ab = [fit(method, seen) for seen in policies]
        reach = [max(p.kl for p in seen) for seen in policies]
        at = [turn(method, a, b) for a, b in ab]
        over = sum(peak < top for peak, top in zip(at, reach, strict=True))
        shown = ", ".join("–" if math.isinf(peak) else f"{peak:.2f}" for peak in at)
        cells = [name, interval([a for a, _ in ab]), interval([b for _, b in ab]), interval(reach, 2), shown]
        lines.append("| " + " | ".join([*cells, f"{over} of {len(seeds)} seeds"]) + " |")
    return "\n".join(lines)


def draw(study: Study, rows: Rows) -> None:
    """Gold and proxy against sqrt(KL): a mark per run, hollow where a KL holds it, and each method's mean curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    seeds = sorted(rows["base"])
    for (method, name), mark, colour in zip(METHODS.items(), "os^D", COLOURS, strict=True):
        on_path = [p for seed in seeds for p in path(rows, method, seed)]
        held = [p for seed in seeds for p in points(rows, method, seed).values() if p not in on_path]
        for panel, field in ((left, "gold"), (right, "proxy")):
            for policies, face, label in ((on_path, colour, name), (held, "none", f"{name}, held by a KL")):
                if policies:
                    x, y = np.sqrt([p.kl for p in policies]), [getattr(p, field) for p in policies]
                    panel.plot(x, y, mark, color=colour, markerfacecolor=face, markersize=5, label=label)
        if len(path(rows, method, seeds[0])) < 3:  # two numbers fit two policies whatever they are
            continue
        a, b = np.mean([fit(method, path(rows, method, seed)) for seed in seeds], axis=0)
        line = np.linspace(0.02, math.sqrt(max(p.kl for p in on_path)), 100)
        left.plot(line, np.array([a, b]) @ shape(method)(line), color=colour, linewidth=1.5)
    for panel, title in ((left, f"gold: {study.gold}"), (right, "proxy: the reward model's score")):
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set(
            title=title, xlabel="sqrt of the KL of completions, nats", ylabel="more than the untrained model"
        )
        panel.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(study.picture, dpi=150)


def tables(study: Study) -> dict[str, str]:
    """Every table of a study, by what it shows."""
    rows = measured(study)
    return {"policies": table(rows), "held": held(rows, study.held), "fit": fits(rows)}


def main() -> None:
    """Print the tables, after taking over a study's numbers where its folder is named."""
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in STUDIES:
        sys.exit(f"usage: overoptimise.py {'|'.join(STUDIES)} [RUN]")
    study = STUDIES[sys.argv[1]]
    if len(sys.argv) == 3:
        shutil.copyfile(Path(sys.argv[2]) / "study.csv", study.file)
        draw(study, measured(study))
    print(*tables(study).values(), sep="\n\n")


if __name__ == "__main__":
    main()

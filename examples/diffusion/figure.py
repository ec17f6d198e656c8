"""The tables and the figure of docs/diffusion.md, from the committed CSV files: python examples/diffusion/figure.py

--out FILE.png    where the figure goes; default docs/images/diffusion.png
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from klent.kit.statistics import mean, standard_error
from klent.kit.student import t_bound

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ORDER = ("ddpo", "dpok", "dpok_released", "kl_in_reward", "path_kl")


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a file of results; none where it was not made."""
    path = RESULTS / name
    return list(csv.DictReader(path.open())) if path.exists() else []


def interval(values: list[float]) -> str:
    """Mean and 95 % interval over seeds, Student's t."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    margin = t_bound(0.05, len(values) - 1) * standard_error(values)
    return f"{mean(values):.3f} ± {margin:.3f}"


def mixture_table() -> Iterator[str]:
    """What each method makes of the mixture, beside the truth."""
    found: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in rows("mixture.csv"):
        found[row["beta"], row["method"]].append(row)
    yield "| beta | method | seeds | KL to the truth | reward | KL of paths | KL of images | value | best |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for beta in sorted({beta for beta, _ in found}, key=float):
        for method in ("reference", *ORDER, "best of Gaussian steps"):
            of = found.get((beta, method))
            if of:
                names = ("kl_to_truth", "reward", "path_kl", "image_kl", "value")
                cells = [interval([float(row[name]) for row in of]) for name in names]
                best = float(of[0]["best"])
                seeds = len(of) if method in ORDER else ""  # the others are exact
                yield f"| {beta} | {method} | {seeds} | {' | '.join(cells)} | {best:.3f} |"


def digits_table() -> Iterator[str]:
    """Reward and KL of paths at the last step."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows("digits.csv"):
        found[row["method"]][row["seed"]] = row  # the last step of each seed stays
    yield "| method | seeds | step | log-probability of the digit | KL of paths |"
    yield "|---|---|---|---|---|"
    for method, of in found.items():
        cells = [interval([float(row[name]) for row in of.values()]) for name in ("reward", "path_kl")]
        yield f"| {method} | {len(of)} | {next(iter(of.values()))['step']} | {' | '.join(cells)} |"


def draw(out: Path) -> None:
    """Left: value of each method against the best there is; right: reward against the KL of paths on digits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    mixture = rows("mixture.csv")
    betas = sorted({row["beta"] for row in mixture}, key=float)
    for place, beta in enumerate(betas):
        for number, method in enumerate(ORDER):
            of = [float(r["kl_to_truth"]) for r in mixture if (r["beta"], r["method"]) == (beta, method)]
            x = number + 0.3 * (place - (len(betas) - 1) / 2)
            left.plot(
                [x] * len(of),
                of,
                "o^sd"[place],
                color=f"C{place}",
                label=f"beta {beta}" if number == 0 else None,
            )
        floor = [
            float(r["kl_to_truth"])
            for r in mixture
            if (r["beta"], r["method"]) == (beta, "best of Gaussian steps")
        ]
        left.axhline(floor[0], color=f"C{place}", linewidth=0.8, linestyle=":")
    left.set_yscale("log")
    left.set_xticks(range(len(ORDER)), [name.replace("_", "\n") for name in ORDER], fontsize=8)
    left.set_ylabel("KL(images ‖ tilted truth), nats")
    left.set_title("mixture; dotted: the best Gaussian steps", fontsize=9)
    left.legend(fontsize=8)
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows("digits.csv"):
        curves[row["method"], row["seed"]].append((float(row["path_kl"]), float(row["reward"])))
    for (method, seed), points in curves.items():
        colour = f"C{sorted({name for name, _ in curves}).index(method)}"
        right.plot(
            *zip(*points, strict=True), color=colour, label=method if seed == "0" else None, linewidth=1
        )
    right.set_xlabel("KL of paths, nats")
    right.set_ylabel("log-probability of the digit")
    right.set_title("digits, one line for each seed", fontsize=9)
    if curves:
        right.legend(fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    print("\n".join([*mixture_table(), "", *digits_table()]))
    default = HERE.parents[1] / "docs" / "images" / "diffusion.png"
    draw(Path(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[1] == "--out" else default)

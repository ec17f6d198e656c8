"""The tables and the figure of docs/diffusion.md, from the committed CSV files: python examples/diffusion/figure.py

--out FILE.png    where the figure goes; default docs/images/diffusion.png
"""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

from klent.kit.statistics import mean, standard_error
from klent.kit.student import t_bound

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ORDER = ("ddpo", "dpok", "dpok_released", "kl_in_reward", "path_kl", "diffusion_nft", "ddrl")
EXACT = ("best of Gaussian steps", "optimum of DDRL")
PLANE_PAIRS = (
    ("path_kl", "dpok", "KL of the path, less KL step by step (DPOK)"),
    ("kl_in_reward", "path_kl", "KL in the reward, less KL of the path"),
    ("diffusion_nft", "dpok", "DiffusionNFT with the KL of each step, less DPOK"),
)
PAIRS = (
    ("diffusion_nft", "ddpo", "DiffusionNFT, less DDPO"),
    ("ddrl", "ddpo", "DDRL, less DDPO"),
    ("ddrl", "dpok", "DDRL, less DPOK"),
    ("diffusion_nft", "ddrl", "DiffusionNFT, less DDRL"),
)

PASSED = (1.0, 3.0, 8.0)  # nats of a path
SIZES = (64, 784, 16384)  # digits of 8x8 and of 28x28, and a latent of Stable Diffusion

Row = dict[str, str]


def rows(name: str) -> list[Row]:
    """The rows of a file of results; none where it was not made."""
    path = RESULTS / name
    return list(csv.DictReader(path.open())) if path.exists() else []


def interval(values: list[float], decimals: int = 3) -> str:
    """Mean and 95 % interval over seeds, Student's t."""
    if len(values) < 2:
        return f"{values[0]:.{decimals}f}"
    margin = t_bound(0.05, len(values) - 1) * standard_error(values)
    return f"{mean(values):.{decimals}f} ± {margin:.{decimals}f}"


def mixture_table(name: str) -> Iterator[str]:
    """What each method makes of a mixture, beside the truth."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows(name):
        found[row["beta"], row["method"]].append(row)
    yield "| beta | method | seeds | KL to the truth | reward | KL of paths | KL of images | value | best |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for beta in sorted({beta for beta, _ in found}, key=float):
        for method in ("reference", *ORDER, *EXACT):
            of = found.get((beta, method))
            if of:
                names = ("kl_to_truth", "reward", "path_kl", "image_kl", "value")
                cells = [interval([float(row[name]) for row in of]) for name in names]
                best = float(of[0]["best"])
                seeds = len(of) if method in ORDER else ""  # the others are exact
                yield f"| {beta} | {method} | {seeds} | {' | '.join(cells)} | {best:.3f} |"


def plane_differences() -> Iterator[str]:
    """Pairs of methods in the plane, seed by seed."""
    found = {(row["method"], row["seed"]): row for row in rows("plane.csv")}
    seeds = sorted({seed for method, seed in found if method == "dpok"})
    yield "| what is compared | seeds | value | KL to the truth | KL of paths |"
    yield "|---|---|---|---|---|"
    for one, other, said in PLANE_PAIRS:
        cells = [
            interval([float(found[one, seed][name]) - float(found[other, seed][name]) for seed in seeds], 4)
            for name in ("value", "kl_to_truth", "path_kl")
        ]
        yield f"| {said} | {len(seeds)} | {' | '.join(cells)} |"


def bound_table() -> Iterator[str]:
    """How much of the KL of paths is KL of images."""
    yield "| mixture | beta | method | seeds | KL of images / KL of paths |"
    yield "|---|---|---|---|---|"
    for world in ("line", "plane"):
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for row in rows(f"{world}.csv"):
            if row["method"] in ORDER:
                found[row["beta"], row["method"]].append(float(row["image_kl"]) / float(row["path_kl"]))
        for (beta, method), shares in sorted(
            found.items(), key=lambda one: (one[0][0], ORDER.index(one[0][1]))
        ):
            yield f"| {world} | {beta} | {method} | {len(shares)} | {interval(shares, 2)} |"


def digits_table() -> Iterator[str]:
    """What the policies make after the last step."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows("digits.csv"):
        found[row["method"]].append(row)
    yield "| method | seeds | log-probability of the digit | KL of paths | distance of two | classes | to the data |"
    yield "|---|---|---|---|---|---|---|"
    for method, of in found.items():
        names = ("reward", "path_kl", "diversity", "classes", "nearest")
        cells = [interval([float(row[name]) for row in of], 2) for name in names]
        seeds = len(of) if method != "reference" else ""
        yield f"| {method} | {seeds} | {' | '.join(cells)} |"


def differences_table() -> Iterator[str]:
    """The same, seed by seed, of pairs of methods."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows("digits.csv"):
        found[row["method"]][row["seed"]] = row
    yield "| what is compared | seeds | log-probability of the digit | KL of paths | distance of two |"
    yield "|---|---|---|---|---|"
    for one, other, said in PAIRS:
        seeds = sorted(found[one].keys() & found[other].keys())
        cells = [
            interval([float(found[one][seed][name]) - float(found[other][seed][name]) for seed in seeds], 2)
            for name in ("reward", "path_kl", "diversity")
        ]
        yield f"| {said} | {len(seeds)} | {' | '.join(cells)} |"


def equal_kl_table() -> Iterator[str]:
    """The reward of the step at which a run passes a KL of paths, on the straight line between two steps."""
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows("digits_steps.csv"):
        found[row["method"]][row["seed"]].append(row)
    yield "| method | seeds | " + " | ".join(f"at {kl:g} nats" for kl in PASSED) + " |"
    yield "|---" * (2 + len(PASSED)) + "|"
    for method, of in found.items():
        cells = [interval([_at(steps, kl) for steps in of.values()], 2) for kl in PASSED]
        yield f"| {method} | {len(of)} | {' | '.join(cells)} |"


def clip_table() -> Iterator[str]:
    """The share of steps that each clip holds, after an update of a known KL: exact, as log-ratios are normal.

    With equal variances log p/p_old of what the old policy drew is N(-KL, 2 KL).
    """
    yield (
        "| KL of a step from its old one | clip 0.2 on the ratio | "
        + " | ".join(f"clip 1e-4 on the mean over {size:,} coordinates" for size in SIZES)
        + " |"
    )
    yield "|---" * (2 + len(SIZES)) + "|"
    for kl in (1e-5, 1e-3, 1e-1):
        bounds = [(math.log(0.8), math.log(1.2))]
        bounds += [(size * math.log1p(-1e-4), size * math.log1p(1e-4)) for size in SIZES]
        law = NormalDist(-kl, (2 * kl) ** 0.5)
        cells = [f"{100 * (law.cdf(low) + 1 - law.cdf(high)):.1f} %" for low, high in bounds]
        yield f"| {kl:g} | {' | '.join(cells)} |"


def penalty_table() -> Iterator[str]:
    """The best reward at some KLs of paths under each penalty, between the coefficients computed."""
    yield "| sampler | largest / smallest b²/(2s²) | KL of paths | best reward, KL of steps | difference of noise |"
    yield "|---|---|---|---|---|"
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows("penalty.csv"):
        found[row["sampler"], row["penalty"]].append(row)
    for sampler in ("ddim", "ddpm", "flow"):
        for kl in (0.25, 0.5, 1.0):
            cells = [f"{_at(found[sampler, penalty], kl):.4f}" for penalty in ("kl", "noise")]
            spread = float(found[sampler, "kl"][0]["spread"])
            yield f"| {sampler} | {spread:.1f} | {kl:g} | {' | '.join(cells)} |"


def _at(of: list[Row], kl: float) -> float:
    """The reward at a KL of paths, on the straight line between two coefficients."""
    points = sorted((float(row["path_kl"]), float(row["reward"])) for row in of)
    (x, y), (u, v) = next((a, b) for a, b in pairwise(points) if a[0] <= kl <= b[0])
    return y + (v - y) * (kl - x) / (u - x)


def draw(out: Path) -> None:
    """Left and middle: how far methods end from the truth; right: reward against the KL of paths on digits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    place_of = {"line": "on the line", "plane": "in the plane"}
    for axis, world in zip(axes, ("line", "plane"), strict=False):
        mixture = rows(f"{world}.csv")
        betas = sorted({row["beta"] for row in mixture}, key=float)
        for place, beta in enumerate(betas):
            colour = f"C{place if len(betas) > 1 else 1}"
            for number, method in enumerate(ORDER):
                of = [float(r["kl_to_truth"]) for r in mixture if (r["beta"], r["method"]) == (beta, method)]
                x = number + 0.3 * (place - (len(betas) - 1) / 2)
                label = f"beta {beta}" if number == 0 else None
                axis.plot([x] * len(of), of, "o^"[place], color=colour, label=label, markersize=4)
            floor = next(
                float(r["kl_to_truth"])
                for r in mixture
                if (r["beta"], r["method"]) == (beta, "best of Gaussian steps")
            )
            axis.axhline(floor, color=colour, linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.set_xticks(range(len(ORDER)), [name.replace("_", "\n") for name in ORDER], fontsize=7)
        axis.set_ylabel("KL(images ‖ tilted truth), nats")
        axis.set_title(f"mixture {place_of[world]}; dotted: the best Gaussian steps", fontsize=9)
        axis.legend(fontsize=8)
    _digits(axes[2])
    figure.savefig(out, dpi=110)


def _digits(axis) -> None:
    """Mean over seeds of reward and KL of paths, step by step."""
    curves: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows("digits_steps.csv"):
        curves[row["method"]][int(row["step"])].append((float(row["path_kl"]), float(row["reward"])))
    for number, (method, steps) in enumerate(curves.items()):
        points = [(mean([kl for kl, _ in at]), mean([r for _, r in at])) for at in steps.values()]
        style = "--" if method.startswith("flow") else "-"
        axis.plot(*zip(*points, strict=True), style, color=f"C{number}", label=method, linewidth=1.2)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlabel("KL of paths, nats")
    axis.set_ylabel("log-probability of the digit")
    axis.set_title("digits of 8x8, means over seeds, 15 steps", fontsize=9)
    if curves:
        axis.legend(fontsize=7)


if __name__ == "__main__":
    tables = (
        *(mixture_table(f"{world}.csv") for world in ("line", "plane")),
        *(plane_differences(), bound_table(), digits_table(), differences_table(), equal_kl_table()),
        *(clip_table(), penalty_table()),
    )
    print("\n\n".join("\n".join(table) for table in tables))
    default = HERE.parents[1] / "docs" / "images" / "diffusion.png"
    draw(Path(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[1] == "--out" else default)

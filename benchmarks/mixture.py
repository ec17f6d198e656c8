"""Time of solving alpha: the Chernoff point of every row, and the mixture's log-probabilities.

    python benchmarks/mixture.py                            # two vocabularies, about a minute
    python benchmarks/mixture.py --threads 1 --clock cpu    # where other programs share the machine

The unit is one ``torch.log_softmax`` of the policy's logits into a tensor that is there already; every solver
too writes log q into such a tensor, where it can. Compared in one process, repeats interleaved, medians:

    log-softmax   the unit
    klent         klent.mixture.solve_alpha
    newton        Newton's method from 1/2 on whole [R, V] tensors, to 1e-6
    bisection     alpha halved until its interval is below 1e-6, as one writes it first
    brentq        scipy.optimize.brentq row by row in NumPy float32, to 1e-6 (needs scipy)

``error`` is the largest distance of alpha from brentq's in float64 over the first 8 rows.
"""

import argparse
import csv
import platform
import re
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import klent
from klent import mixture

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RESULTS = Path(__file__).parent / "results" / "mixture_cpu.csv"
ROWS = 64
Solver = Callable[[Tensor, Tensor, Tensor], Tensor]


def random_pair(vocabulary: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Two unrelated rows of normal logits, deviation 2."""
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(rows, vocabulary, generator=generator), 2 * torch.randn(
        rows, vocabulary, generator=generator
    )


def language_pair(vocabulary: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Shaped as a language model's: Zipf's law in an order that both share, and noise on each."""
    generator = torch.Generator().manual_seed(1)
    order = torch.stack([torch.randperm(vocabulary, generator=generator) for _ in range(rows)])
    common = -1.5 * (order + 1.0).log()
    noise = torch.randn(2, rows, vocabulary, generator=generator)
    return common + 0.5 * noise[0], common + 1.5 * noise[1]


PAIRS = {"random": random_pair, "zipf": language_pair}


def unit(policy: Tensor, target: Tensor, out: Tensor) -> Tensor:
    return torch.log_softmax(policy, -1, out=out)


def solve_klent(policy: Tensor, target: Tensor, out: Tensor) -> Tensor:
    return mixture.solve_alpha(policy, target, out=out).alpha


def solve_newton(policy: Tensor, target: Tensor, out: Tensor) -> Tensor:
    log_p, log_t = policy.log_softmax(-1), target.log_softmax(-1)
    ratio = log_t - log_p
    alpha = torch.full((len(policy), 1), 0.5)
    for _ in range(30):
        q = torch.lerp(log_t, log_p, alpha).softmax(-1)
        mean = (q * ratio).sum(-1, keepdim=True)
        if mean.abs().max() < 1e-6:
            break
        alpha = alpha + mean / (q * (ratio - mean).square()).sum(-1, keepdim=True)
    torch.log_softmax(torch.lerp(log_t, log_p, alpha), -1, out=out)
    return alpha[:, 0]


def solve_bisection(policy: Tensor, target: Tensor, out: Tensor) -> Tensor:
    log_p, log_t = policy.log_softmax(-1), target.log_softmax(-1)
    low, high = torch.zeros(len(policy), 1), torch.ones(len(policy), 1)
    while (high - low).max() > 1e-6:
        alpha = (low + high) / 2
        q = torch.softmax(alpha * log_p + (1 - alpha) * log_t, -1)
        right = (q * (log_t - log_p)).sum(-1, keepdim=True) > 0
        low, high = torch.where(right, alpha, low), torch.where(right, high, alpha)
    torch.log_softmax(torch.lerp(log_t, log_p, low), -1, out=out)
    return low[:, 0]


def solve_brentq(policy: Tensor, target: Tensor, out: Tensor) -> Tensor:
    roots = [brentq_row(a, b, 1e-6) for a, b in zip(policy.numpy(), target.numpy(), strict=True)]
    alpha = torch.tensor(roots, dtype=torch.float32)
    torch.log_softmax(torch.lerp(target.log_softmax(-1), policy.log_softmax(-1), alpha[:, None]), -1, out=out)
    return alpha


def brentq_row(policy: np.ndarray, target: np.ndarray, xtol: float) -> float:
    from scipy.optimize import brentq

    ratio = (target - _log_sum(target)) - (policy - _log_sum(policy))

    def gap(alpha: float) -> float:
        weights = policy + policy.dtype.type(1 - alpha) * ratio
        q = np.exp(weights - weights.max())
        return float((q * ratio).sum() / q.sum())

    return float(brentq(gap, 0, 1, xtol=xtol))


def _log_sum(x: np.ndarray) -> np.ndarray:
    return x.max() + np.log(np.exp(x - x.max()).sum())


SOLVERS: dict[str, Solver] = {
    "log-softmax": unit,
    "klent": solve_klent,
    "newton": solve_newton,
    "bisection": solve_bisection,
    "brentq": solve_brentq,
}


def measure(
    pair: str, vocabulary: int, repeats: int, clock: str, names: list[str]
) -> list[dict[str, object]]:
    policy, target = PAIRS[pair](vocabulary)
    out, now = torch.empty_like(policy), CLOCKS[clock]
    few = 8
    exact = [
        brentq_row(a, b, 1e-13)
        for a, b in zip(*(x[:few].double().numpy() for x in (policy, target)), strict=True)
    ]
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            if name in ("bisection", "brentq") and turn > 2:
                continue  # slow, and far from the others: two repeats tell
            start = now()
            alpha = SOLVERS[name](policy, target, out)
            times[name].append((now() - start) * 1e3)
            if turn == 0 and name != "log-softmax":
                times[name + "/error"] = [float((alpha[:few].double() - torch.tensor(exact)).abs().max())]
    ms = {name: statistics.median(times[name][1:]) for name in names}  # the first round warms up
    return [
        {
            "pair": pair,
            "rows": ROWS,
            "vocabulary": vocabulary,
            "solver": name,
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "repeats": len(times[name]) - 1,
            "clock": clock,
            "ms": f"{ms[name]:.2f}",
            "log_softmax_passes": f"{ms[name] / ms['log-softmax']:.2f}",
            "error": "" if name == "log-softmax" else f"{times[name + '/error'][0]:.1e}",
            "device": device_name(),
            "torch": torch.__version__,
            "klent": klent.__version__,
            "date": datetime.now(UTC).date().isoformat(),
        }
        for name in names
    ]


def device_name() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()


SHOWN = ("pair", "vocabulary", "threads", "solver", "ms", "log_softmax_passes", "error")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[49152, 151936])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this process; needs --threads 1"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV to write (replaced)")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu adds the threads up: use it with --threads 1")
    print(f"{device_name()}, torch {torch.__version__}")
    print("  ".join(f"{name:>18}" for name in SHOWN), flush=True)
    names = ["log-softmax", *(name for name in options.solvers if name != "log-softmax")]
    table = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for vocabulary in options.vocabulary:
            for pair in options.pairs:
                for row in measure(pair, vocabulary, options.repeats, options.clock, names):
                    table.append(row)
                    print("  ".join(f"{row[name]!s:>18}" for name in SHOWN), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

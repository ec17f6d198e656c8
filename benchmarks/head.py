"""Time and memory of the head: log-probability and entropy of every token, forward and backward.

    python benchmarks/head.py                            # three cases, about 5 minutes on 2 idle cores
    python benchmarks/head.py --threads 1 --clock cpu    # where other programs share the machine

Compared, in one process, their repeats interleaved, median of the times:

    floor      the matrix products that nothing can avoid: logits in the forward, the same again in the
               backward, and one product each for the gradients of hidden states and weight; bare, in tiles of
               1024 x 1024 (faster here than whole [N, V] products), with everything allocated beforehand
    chunked    klent.token_stats as it is used
    reference  klent.token_stats(implementation="reference"): full logits and autograd

Memory is the peak resident size (VmHWM in /proc/self/status) of a fresh process that runs one forward and
backward, less its resident size just before and less the gradients: what the head needs beyond inputs and
gradients, the library's own packing buffers included. On systems without /proc the column is empty.
"""

import argparse
import csv
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import klent

TILE = 1024
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Implementation = Literal["chunked", "reference"]
RESULTS = Path(__file__).parent / "results" / "head_cpu.csv"


@dataclass(frozen=True)
class Case:
    """``share`` of the rows have non-zero coefficients."""

    rows: int
    width: int
    words: int
    share: float = 1.0


CASES = {
    "all-rows": Case(2048, 576, 49152),
    "20%-of-rows": Case(2048, 576, 49152, share=0.2),
    "large-vocabulary": Case(2048, 576, 151936),
}


class Inputs:
    """Hidden states, weight and targets of one case, and the coefficients of a loss in both outputs."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(case.rows, case.width, requires_grad=True)
        self.weight = torch.empty(case.words, case.width).normal_(std=0.05).requires_grad_()
        self.target = torch.randint(case.words, (case.rows,))
        self.c, self.e = torch.randn(case.rows), torch.randn(case.rows)
        idle = torch.randperm(case.rows)[round(case.rows * case.share) :]
        self.c[idle] = self.e[idle] = 0.0
        self.active = int((self.c != 0).sum())


def head(implementation: Implementation) -> Callable[[Inputs], None]:
    def run(x: Inputs) -> None:
        out = klent.token_stats(x.hidden, x.weight, x.target, implementation=implementation)
        assert out.entropy is not None
        torch.autograd.grad([out.logp, out.entropy], [x.hidden, x.weight], [x.c, x.e])

    return run


class Floor:
    """The bare products of the rows that need them, tile by tile."""

    def __init__(self, case: Case) -> None:
        self.tile = torch.zeros(TILE * TILE)
        self.dhidden = torch.zeros(case.rows, case.width)
        self.dweight = torch.zeros(case.words, case.width)

    def __call__(self, x: Inputs) -> None:
        hidden, weight = x.hidden.detach(), x.weight.detach()
        for w in weight.split(TILE):
            for h in hidden.split(TILE):
                torch.mm(h, w.T, out=self.logits(h, w))
        for w, dw in zip(weight.split(TILE), self.dweight.split(TILE), strict=True):
            for h, dh in zip(hidden[: x.active].split(TILE), self.dhidden.split(TILE), strict=False):
                logits = torch.mm(h, w.T, out=self.logits(h, w))
                dh[: h.shape[0]].addmm_(logits, w)
                dw.addmm_(logits.T, h)

    def logits(self, h: Tensor, w: Tensor) -> Tensor:
        return self.tile[: h.shape[0] * w.shape[0]].view(h.shape[0], w.shape[0])


def measure_times(case: Case, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds by contender."""
    x = Inputs(case)
    contenders: dict[str, Callable[[Inputs], None]] = {"floor": Floor(case), "chunked": head("chunked")}
    if case.rows * case.words <= 2**27:  # the reference keeps about six [N, V] tensors
        contenders["reference"] = head("reference")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            start = clock()
            run(x)
            times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(t[1:]) for name, t in times.items()}  # the first round warms up


def resident(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024 / 1e6  # type: ignore[index]


def peak_here(case: Case, implementation: Implementation) -> float:
    """MB beyond inputs and gradients, in this process, which must not have done anything else before."""
    head(implementation)(Inputs(Case(8, 8, 8)))  # the library's threads and autograd's start before the count
    x = Inputs(case)
    before = resident("VmRSS")
    head(implementation)(x)
    gradients = sum(t.nbytes for t in (x.hidden, x.weight)) / 1e6
    return resident("VmHWM") - before - gradients


def measure_peak(case_name: str, implementation: str, threads: int) -> float | None:
    if implementation == "floor" or not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, __file__, "--threads", str(threads), "--peak-of", case_name, implementation]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def device_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def rows_of(case_name: str, repeats: int, clock: str) -> list[dict[str, object]]:
    case, threads = CASES[case_name], torch.get_num_threads()
    times = measure_times(case, repeats, CLOCKS[clock])
    out: list[dict[str, object]] = []
    for name, ms in times.items():
        peak = measure_peak(case_name, name, threads)
        out.append(
            {
                "case": case_name,
                "implementation": name,
                "rows": case.rows,
                "width": case.width,
                "words": case.words,
                "share": case.share,
                "dtype": "float32",
                "threads": threads,
                "repeats": repeats,
                "clock": clock,
                "ms": f"{ms:.0f}",
                "ratio_to_floor": f"{ms / times['floor']:.3f}",
                "peak_mb": "" if peak is None else f"{peak:.1f}",
                "device": device_name(),
                "torch": torch.__version__,
                "klent": klent.__version__,
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
    return out


SHOWN = ("case", "implementation", "words", "share", "ms", "ratio_to_floor", "peak_mb")


def show(row: dict[str, object] | None) -> None:
    print("  ".join(f"{name if row is None else row[name]!s:>16}" for name in SHOWN), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this process; needs --threads 1"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV to write (replaced)")
    parser.add_argument("--peak-of", nargs=2, metavar=("CASE", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu adds the threads up: use it with --threads 1")
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(peak_here(CASES[options.peak_of[0]], options.peak_of[1]))
        return
    print(f"{device_name()}, {options.threads} threads, torch {torch.__version__}")
    show(None)
    table = []
    for case_name in options.cases:
        for row in rows_of(case_name, options.repeats, options.clock):
            table.append(row)
            show(row)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

"""Time and memory of the head: log-probability and entropy of every token, forward and backward.

    python benchmarks/head.py                            # three cases, about 5 minutes on 2 idle cores
    python benchmarks/head.py --cases all-rows           # one case; the others' lines in the CSV stay
    python benchmarks/head.py --threads 1 --clock cpu    # where other programs share the machine

Compared, in one process, their repeats interleaved, median of the times:

    floor      the matrix products that nothing can avoid: logits in the forward, the same again in the
               backward, and one product each for the gradients of hidden states and weight; bare, nothing
               added up, in tiles of 2048 x 512. Taken through oneDNN and, as "floor-mkl", through torch.mm:
               the ratio is to the faster of the two
    chunked    klent.token_stats: no logits are kept
    kept       the same with every logit kept from the forward to the backward (keep_bytes): three products
    reference  klent.token_stats(implementation="reference"): full logits and autograd
    trl        trl.kernels.ChunkedLogProbFunction of TRL 1.16 (what its GRPOTrainer runs), asked for the
               entropy, with the same coefficients for both outputs, at whichever of several chunk sizes is
               the fastest here. Needs ``pip install trl==1.16.0``; left out, with the reason, without it

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import klent
from klent.head.products import product

TILE = 2048, 512  # rows x tokens of the vocabulary
TRL_CHUNKS = 4096, 16384, 32768  # the last one is what its trainer passes
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
RESULTS = Path(__file__).parent / "results" / "head_cpu.csv"


@dataclass(frozen=True)
class Case:
    """``share`` of the rows have non-zero coefficients."""

    rows: int
    width: int
    vocabulary: int
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
        self.weight = torch.empty(case.vocabulary, case.width).normal_(std=0.05).requires_grad_()
        self.target = torch.randint(case.vocabulary, (case.rows,))
        self.c, self.e = torch.randn(case.rows), torch.randn(case.rows)
        idle = torch.randperm(case.rows)[round(case.rows * case.share) :]
        self.c[idle] = self.e[idle] = 0.0
        self.active = int((self.c != 0).sum())


def head(implementation: str) -> Callable[[Inputs], None]:
    """A contender by its name; ``trl-4096`` is TRL's kernel with chunks of 4096 tokens."""
    if implementation.startswith("trl-"):
        return trl_head(int(implementation.removeprefix("trl-")))
    options: dict[str, Any] = {"implementation": implementation}
    if implementation == "kept":
        options = {"implementation": "chunked", "keep_bytes": 1 << 40}

    def run(x: Inputs) -> None:
        out = klent.token_stats(x.hidden, x.weight, x.target, **options)
        assert out.entropy is not None
        torch.autograd.grad([out.logp, out.entropy], [x.hidden, x.weight], [x.c, x.e])

    return run


def trl_head(chunk_size: int) -> Callable[[Inputs], None]:
    from trl.kernels import ChunkedLogProbFunction  # type: ignore[import-not-found]

    def run(x: Inputs) -> None:
        logp, entropy, *_ = ChunkedLogProbFunction.apply(
            x.hidden, x.weight, None, x.target, 1.0, chunk_size, None, 1.0, ("entropy",)
        )
        torch.autograd.grad([logp, entropy], [x.hidden, x.weight], [x.c, x.e])

    return run


def why_no_trl() -> str | None:
    """Why TRL's kernel cannot be measured here, or None."""
    try:
        from trl.kernels import ChunkedLogProbFunction  # noqa: F401
    except ImportError as error:
        return f"no TRL here ({error}): pip install trl==1.16.0"
    return None


def floor(multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs], None]:
    """The bare products of the rows that need them, tile by tile; ``multiply(a, b) = a @ b.T``."""

    def run(x: Inputs) -> None:
        hidden, weight = x.hidden.detach(), x.weight.detach()
        for w in weight.split(TILE[1]):
            for h in hidden.split(TILE[0]):
                multiply(h, w)
        active = hidden[: x.active].split(TILE[0])
        across = [h.T.contiguous() for h in active]
        for w in weight.split(TILE[1]):
            for h, h_across in zip(active, across, strict=True):
                g = multiply(h, w)
                multiply(g, w.T)
                multiply(h_across, g.T)

    return run


def mkl(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right.T)


def measure_times(
    case: Case, repeats: int, clock: Callable[[], float], chunks: Sequence[int]
) -> dict[str, float]:
    """Median milliseconds by contender; ``chunks`` are the chunk sizes that TRL may choose from."""
    x = Inputs(case)
    contenders = {"floor": floor(product), "floor-mkl": floor(mkl), "chunked": head("chunked")}
    contenders["kept"] = head("kept")
    if case.rows * case.vocabulary <= 2**27:  # the reference keeps about six [N, V] tensors
        contenders["reference"] = head("reference")

    def measure(run: Callable[[Inputs], None]) -> float:
        start = clock()
        run(x)
        return (clock() - start) * 1e3

    missing = why_no_trl()
    if missing is None:
        sweep = {size: measure(trl_head(size)) for size in chunks}
        best = min(sweep, key=sweep.__getitem__)
        print("trl, one run per chunk size:", ", ".join(f"{k}: {ms:.0f} ms" for k, ms in sweep.items()))
        contenders[f"trl-{best}"] = trl_head(best)
    else:
        print(f"trl left out: {missing}")
    for name in contenders.keys() - {f"trl-{size}" for size in chunks}:
        contenders[name](x)  # warms up, as the sweep did for TRL
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(measure(run))
    return {name: statistics.median(t) for name, t in times.items()}


def resident(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024 / 1e6  # type: ignore[index]


def peak_here(case: Case, implementation: str) -> float:
    """MB beyond inputs and gradients, in this process, which must not have done anything else before."""
    head(implementation)(Inputs(Case(8, 8, 8)))  # the library's threads and autograd's start before the count
    x = Inputs(case)
    before = resident("VmRSS")
    head(implementation)(x)
    gradients = sum(t.nbytes for t in (x.hidden, x.weight)) / 1e6
    return resident("VmHWM") - before - gradients


def measure_peak(case_name: str, implementation: str, threads: int) -> float | None:
    if implementation.startswith("floor") or not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, __file__, "--threads", str(threads), "--peak-of", case_name, implementation]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def device_name() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return match[1].strip() if match else platform.processor() or platform.machine()


def rows_of(case_name: str, repeats: int, clock: str, chunks: Sequence[int]) -> list[dict[str, object]]:
    case, threads = CASES[case_name], torch.get_num_threads()
    times = measure_times(case, repeats, CLOCKS[clock], chunks)
    lowest = min(ms for name, ms in times.items() if name.startswith("floor"))
    trl_ms = next((ms for name, ms in times.items() if name.startswith("trl")), None)
    out: list[dict[str, object]] = []
    for name, ms in times.items():
        peak = measure_peak(case_name, name, threads)
        out.append(
            {
                "case": case_name,
                "implementation": name,
                "rows": case.rows,
                "width": case.width,
                "vocabulary": case.vocabulary,
                "share": case.share,
                "dtype": "float32",
                "threads": threads,
                "repeats": repeats,
                "clock": clock,
                "ms": f"{ms:.0f}",
                "ratio_to_floor": f"{ms / lowest:.3f}",
                "faster_than_trl": "" if trl_ms is None else f"{trl_ms / ms:.2f}",
                "peak_mb": "" if peak is None else f"{peak:.1f}",
                "device": device_name(),
                "torch": torch.__version__,
                "klent": klent.__version__,
                "date": datetime.now(UTC).date().isoformat(),
            }
        )
    return out


SHOWN = (
    "case",
    "implementation",
    "vocabulary",
    "share",
    "ms",
    "ratio_to_floor",
    "faster_than_trl",
    "peak_mb",
)


def show(row: dict[str, object] | None) -> None:
    print("  ".join(f"{name if row is None else row[name]!s:>16}" for name in SHOWN), flush=True)


def write(path: Path, table: list[dict[str, object]]) -> None:
    """Replace these cases' lines in the file and keep the others'."""
    kept: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames == list(table[0]):
                kept = [dict(row) for row in reader if row["case"] not in {new["case"] for new in table}]
    lines = sorted(kept + table, key=lambda row: list(CASES).index(str(row["case"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trl-chunks", nargs="+", type=int, default=TRL_CHUNKS, metavar="TOKENS")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: seconds of this process; needs --threads 1"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV to write")
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
        for row in rows_of(case_name, options.repeats, options.clock, options.trl_chunks):
            table.append(row)
            show(row)
    write(options.out, table)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

"""The head on a GPU: log-probability and entropy of every token, forward and backward, in bfloat16.

    python benchmarks/head_gpu.py                 # N = 16,384, H = 2048, V = 151,936; one GPU, a few minutes
    TRITON_INTERPRET=1 python benchmarks/head_gpu.py --device cpu --rows 16 --width 16 --vocabulary 200

Compared, in one process, their repeats interleaved, median of the times:

    floor      the four matrix products that nothing can avoid, bare, as the library gives them for whole
               tiles of 8192 tokens (bfloat16 in, float32 sums)
    triton     klent.token_stats on a GPU, no logits kept
    kept       the same with every logit kept from the forward to the backward (keep_bytes): three products
    chunked    klent.token_stats(implementation="chunked"): the same without Triton
    trl        TRL 1.16's ChunkedLogProbFunction with the entropy and its gradient, at the fastest of several
               chunk sizes.  pip install trl==1.16.0
    liger      Liger's fused linear cross-entropy: no entropy and a coefficient of 1 / N for every row, so
               it does less.  pip install liger-kernel
    cce        Apple's linear_cross_entropy, a coefficient per row, no entropy: it does less.
               pip install "cut-cross-entropy @ git+https://github.com/apple/ml-cross-entropy"

A contender that is not installed, or that fails, is left out with the reason. Memory is the peak that torch
allocated beyond what was held before and the gradients. The error is that of log-probabilities, entropies and
the gradient of the hidden states on the first 64 rows against float64 logits of the same rounded inputs,
relative to the largest value.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src")]  # klent need not be installed
from common import device_name, show, today, write  # noqa: E402
from torch import Tensor  # noqa: E402

import klent  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "head_gpu.csv"
TRL_CHUNKS = 4096, 8192, 16384, 32768
CHECKED = 64  # rows compared with float64


@dataclass
class Outcome:
    """What a contender gives; None for what it has not."""

    logp: Tensor | None = None
    entropy: Tensor | None = None
    dhidden: Tensor | None = None


class Inputs:
    def __init__(self, rows: int, width: int, vocabulary: int, device: str) -> None:
        torch.manual_seed(0)
        like = {"device": device, "dtype": torch.bfloat16}
        self.hidden = torch.randn(rows, width, **like).requires_grad_()  # type: ignore[call-overload]
        self.weight = torch.empty(vocabulary, width, **like).normal_(std=width**-0.5).requires_grad_()  # type: ignore[call-overload]
        self.target = torch.randint(vocabulary, (rows,), device=device)
        self.c, self.e = torch.randn(2, rows, device=device)


Contender = Callable[[Inputs], Outcome]


def klent_head(implementation: str, keep_bytes: int = 0) -> Contender:
    options: dict[str, Any] = {"implementation": implementation, "keep_bytes": keep_bytes}

    def run(x: Inputs) -> Outcome:
        out = klent.token_stats(x.hidden, x.weight, x.target, **options)
        assert out.entropy is not None
        dhidden, _ = torch.autograd.grad([out.logp, out.entropy], [x.hidden, x.weight], [x.c, x.e])
        return Outcome(out.logp.detach(), out.entropy.detach(), dhidden)

    return run


def trl_head(chunk_size: int) -> Contender:
    from trl.kernels import ChunkedLogProbFunction  # type: ignore[import-not-found]

    def run(x: Inputs) -> Outcome:
        logp, entropy, *_ = ChunkedLogProbFunction.apply(
            x.hidden, x.weight, None, x.target, 1.0, chunk_size, None, 1.0, ("entropy",)
        )
        dhidden, _ = torch.autograd.grad([logp, entropy], [x.hidden, x.weight], [x.c, x.e])
        return Outcome(logp.detach(), entropy.detach(), dhidden)

    return run


def liger_head() -> Contender:
    from liger_kernel.transformers import (  # type: ignore[import-not-found]
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss()

    def run(x: Inputs) -> Outcome:
        torch.autograd.grad(loss(x.weight, x.hidden, x.target), [x.hidden, x.weight])
        return Outcome()

    return run


def cce_head() -> Contender:
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    def run(x: Inputs) -> Outcome:
        loss = linear_cross_entropy(x.hidden, x.weight, x.target, reduction="none")
        torch.autograd.grad(loss, [x.hidden, x.weight], x.c.to(loss.dtype))
        return Outcome(logp=-loss.detach())

    return run


def floor(x: Inputs) -> Outcome:
    hidden, weight = x.hidden.detach(), x.weight.detach()
    for w in weight.split(8192):
        hidden @ w.T
    for w in weight.split(8192):
        g = hidden @ w.T
        g @ w
        g.T @ hidden
    return Outcome()


def find(wanted: list[str]) -> dict[str, Contender]:
    """The contenders that are installed; why the others are not here is printed."""
    makers: dict[str, Callable[[], Contender]] = {
        "floor": lambda: floor,
        "triton": lambda: klent_head("triton"),
        "kept": lambda: klent_head("triton", keep_bytes=1 << 40),
        "chunked": lambda: klent_head("chunked"),
        **{f"trl-{size}": lambda size=size: trl_head(size) for size in TRL_CHUNKS},  # type: ignore[misc]
        "liger": liger_head,
        "cce": cce_head,
    }
    contenders = {}
    for name, make in makers.items():
        if wanted and name.split("-")[0] not in [*wanted, "floor"]:
            continue
        try:
            contenders[name] = make()
        except ImportError as error:
            print(f"{name} left out: {error}")
    return contenders


def truth(x: Inputs) -> Outcome:
    hidden = x.hidden[:CHECKED].detach().double().requires_grad_()
    c, e = x.c[:CHECKED].double(), x.e[:CHECKED].double()
    out = klent.token_stats(
        hidden, x.weight.detach().double(), x.target[:CHECKED], implementation="reference"
    )
    assert out.entropy is not None
    (dhidden,) = torch.autograd.grad([out.logp, out.entropy], hidden, [c, e])
    return Outcome(out.logp.detach(), out.entropy.detach(), dhidden)


def error(actual: Tensor | None, exact: Tensor | None) -> str:
    if actual is None or exact is None:
        return ""
    return f"{float((actual[:CHECKED].double() - exact).abs().max() / exact.abs().max()):.1e}"


def timed(run: Contender, x: Inputs) -> float:
    """Milliseconds, the device waited for."""
    wait = torch.cuda.synchronize if x.hidden.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    run(x)
    wait()
    return (time.perf_counter() - start) * 1e3


def peak(run: Contender, x: Inputs) -> str:
    """MB beyond inputs and gradients."""
    if not x.hidden.is_cuda:
        return ""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(x)
    gradients = x.hidden.nbytes + x.weight.nbytes
    return f"{(torch.cuda.max_memory_allocated() - before - gradients) / 1e6:.0f}"


def measure(x: Inputs, contenders: dict[str, Contender], repeats: int) -> list[dict[str, object]]:
    exact = truth(x)
    results: dict[str, Outcome] = {}
    for name, run in contenders.items():
        try:
            results[name] = run(x)  # compiles, warms up, and shows what cannot run here
        except Exception as problem:
            print(f"{name} left out: {type(problem).__name__}: {str(problem).splitlines()[0]}")
    times: dict[str, list[float]] = {name: [] for name in results}
    for _ in range(repeats):
        for name in results:
            times[name].append(timed(contenders[name], x))
    ms = {name: statistics.median(t) for name, t in times.items()}
    trl_ms = min((t for name, t in ms.items() if name.startswith("trl")), default=None)
    return [
        {
            "implementation": name,
            "rows": x.hidden.shape[0],
            "width": x.hidden.shape[1],
            "vocabulary": x.weight.shape[0],
            "dtype": "bfloat16",
            "repeats": repeats,
            "ms": f"{ms[name]:.2f}",
            "share_of_floor": f"{ms['floor'] / ms[name]:.3f}",
            "faster_than_trl": "" if trl_ms is None else f"{trl_ms / ms[name]:.2f}",
            "peak_mb": peak(contenders[name], x),
            "error_logp": error(outcome.logp, exact.logp),
            "error_entropy": error(outcome.entropy, exact.entropy),
            "error_dhidden": error(outcome.dhidden, exact.dhidden),
            "device": torch.cuda.get_device_name() if x.hidden.is_cuda else device_name(),
            "torch": torch.__version__,
            "klent": klent.__version__,
            "date": today(),
        }
        for name, outcome in results.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=[], help="contenders besides the floor")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="CSV to write; on a GPU benchmarks/results/head_gpu.csv")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "nothing measured: no GPU here; the plumbing alone: TRITON_INTERPRET=1 ... --device cpu, small sizes"
        )
        return
    if options.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("on a CPU the kernels run in Triton's interpreter: set TRITON_INTERPRET=1")
    x = Inputs(options.rows, options.width, options.vocabulary, options.device)
    table = measure(x, find(options.only), options.repeats)
    show(table, ["implementation", "ms", "share_of_floor", "faster_than_trl", "peak_mb", "error_logp",
                 "error_entropy", "error_dhidden"])  # fmt: skip
    out = options.out or (RESULTS if options.device == "cuda" else None)
    if out is not None:
        write(out, table)
        print(f"wrote {out}")


if __name__ == "__main__":
    main()

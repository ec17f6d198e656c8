"""What a KL term costs in a whole step: the quickstart plain, with a KL per token, and with one of sequences.

    python benchmarks/step_terms.py                # 3 rounds of 4 steps of each, 10 minutes on 2 idle cores

The job is that of recipes/quickstart.yaml. Each arm adds its terms to the loss and runs in a worker process; the
arms take turns, round after round, so that a slow minute of the machine meets all of them. ``seconds`` is the median
over rounds of the median step without the first, ``train`` the same of the update alone, with the passes before it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ARMS: dict[str, list[str]] = {
    "no KL": [],
    "kl_in_loss": ["loss.kl_in_loss.coef=0.05"],
    "sequence_kl": ["loss.sequence_kl.coef=0.05"],
    "sequence_entropy": ["loss.sequence_entropy.coef=-0.01"],
}


def worker(arm: str, steps: int, model: str, out: Path) -> None:
    """Run one arm and write its rows to ``out``."""
    from klent.runs.process import prepare_process

    prepare_process()
    from klent.config import load_recipe
    from klent.runs.train import train

    overrides = [f"steps={steps}", f"model={model}", "eval=null", "checkpoint.every=0", *ARMS[arm]]
    recipe = load_recipe(str(HERE.parent / "recipes" / "quickstart.yaml"), overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = train(recipe, Path(folder) / "run", command="benchmarks/step_terms.py")
        out.write_text((run / "metrics.jsonl").read_text())


def measure(arm: str, steps: int, model: str) -> list[dict[str, float]]:
    """The rows of metrics.jsonl that a worker process of this arm wrote, without the first."""

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        options = ["--worker", arm, "--steps", str(steps), "--model", model, "--out", str(out)]
        subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in out.read_text().splitlines()][1:]


def summary(rounds: dict[str, list[list[dict[str, float]]]]) -> list[dict[str, Any]]:
    """One row per arm, beside the arm with a KL per token."""
    import torch
    from common import device_name, today

    def middle(arm: str, metric: str) -> float:
        return statistics.median(statistics.median(row[metric] for row in rows) for rows in rounds[arm])

    return [
        {
            "terms": arm,
            "rounds": len(rounds[arm]),
            "seconds": round(middle(arm, "time/step"), 2),
            "train": round(middle(arm, "time/train"), 2),
            "over_kl_in_loss": round(middle(arm, "time/step") / middle("kl_in_loss", "time/step"), 3),
            "memory_gb": round(middle(arm, "memory/peak_gb"), 2),
            "threads": torch.get_num_threads(),
            "device": device_name(),
            "torch": torch.__version__,
            "date": today(),
        }
        for arm in rounds
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "step_terms_cpu.csv", help="CSV to write (replaced)"
    )
    parser.add_argument("--worker", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.steps, options.model, options.out)
        return
    sys.path.insert(0, str(HERE))
    from common import write

    rounds: dict[str, list[list[dict[str, float]]]] = {arm: [] for arm in options.arms}
    for number in range(options.rounds):
        for arm in options.arms:
            rounds[arm].append(measure(arm, options.steps, options.model))
            seconds = statistics.median(row["time/step"] for row in rounds[arm][-1])
            print(f"round {number + 1}: {arm} {seconds:.2f} s per step", flush=True)
    table = summary(rounds)
    for row in table:
        print(f"{row['terms']:>18}  {row['seconds']:6.2f} s  {row['over_kl_in_loss']:.2f} x kl_in_loss")
    write(options.out, table)


if __name__ == "__main__":
    main()

"""What ranks and sampling ahead gain on two cores: whole steps of the quickstart, four ways to use the machine.

    python benchmarks/together.py                  # 3 rounds of 4 steps of each, about 8 minutes on 2 idle cores

The arms take turns, round after round, each in processes of its own. ``seconds`` is the median over rounds of the
median step without the first. One process on two threads is what `klent train` does by itself.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ARMS: dict[str, tuple[int, int, list[str]]] = {
    "one process, one thread": (1, 1, []),
    "one process, two threads": (1, 2, []),
    "two ranks of one thread": (2, 1, []),
    "sampling ahead, one thread each": (1, 1, ["rollout.staleness=1"]),
}
"""Ranks, threads of each, overrides."""


def seconds_of(arm: str, steps: int, model: str) -> float:
    """The median step of one run of an arm, without the first."""
    ranks, threads, overrides = ARMS[arm]
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        recipe = str(HERE.parent / "recipes" / "quickstart.yaml")
        plain = [f"steps={steps}", f"model={model}", "eval=null", "checkpoint.every=0", "name=run"]
        command = [sys.executable, "-m", "klent", "train", recipe, *plain, *overrides, "--runs", folder]
        started = []
        for rank in range(ranks):
            values = {"OMP_NUM_THREADS": str(threads)}
            if ranks > 1:
                values |= {"WORLD_SIZE": str(ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
                values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            quiet = subprocess.DEVNULL
            started.append(subprocess.Popen(command, env={**os.environ, **values}, stdout=quiet))
        if any(process.wait() for process in started):
            raise SystemExit(f"{arm}: a process failed")
        rows = [
            json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        ]
    return statistics.median(row["time/step"] for row in rows[1:])


def main() -> None:
    """Measure every arm in turns, print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=RESULTS / "together_cpu.csv")
    arguments = parser.parse_args()
    import torch
    from common import device_name, show, today, write

    took: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(arguments.rounds):
        for arm in ARMS:
            took[arm].append(seconds_of(arm, arguments.steps, arguments.model))
    usual = statistics.median(took["one process, two threads"])
    table: list[dict[str, Any]] = [
        {
            "arm": arm,
            "seconds": round(statistics.median(values), 3),
            "fastest": round(min(values), 3),
            "slowest": round(max(values), 3),
            "to_usual": round(statistics.median(values) / usual, 3),
            "device": device_name(),
            "torch": torch.__version__,
            "date": today(),
        }
        for arm, values in took.items()
    ]
    show(table, ["arm", "seconds", "fastest", "slowest", "to_usual"])
    write(arguments.out, table)


if __name__ == "__main__":
    main()

"""Record the goldens: ``python tests/goldens/record.py [CASE ...]``, with the Python of a checkout's .venv.

Recorded before a change of structure and read by test_goldens.py after it. A case is recorded again only
where a change is meant to move its numbers, and the changelog then says so under Numbers move.
"""

import hashlib
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
GOLDENS = HERE / "goldens.json"
TIMED = ("time/", "memory/")


def fingerprint() -> dict[str, str]:
    """What decides the last bits of a number: equal bits are asked for only where all of this is equal."""
    import torch
    import transformers

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def run_case(name: str, folder: Path) -> dict[str, Any]:
    """Train a case in ``folder`` (the working folder) and read what it left behind."""
    from goldens.cases import recipe_of
    from klent.config import make_recipe
    from klent.runs.console import QuietConsole
    from klent.runs.train import train

    run = folder / f"run-{name}"
    train(make_recipe(recipe_of(name)), run, command="golden", console=QuietConsole())
    return read_run(run)


def read_run(run: Path) -> dict[str, Any]:
    """Digests of everything that a run leaves, and its numbers, without times."""
    final = run / "final"
    weights = sorted(p for p in final.rglob("*.safetensors"))
    digest = hashlib.sha256()
    for path in weights:
        digest.update(path.read_bytes())
    return {
        "weights": digest.hexdigest(),
        "samples": _digest((run / "samples.jsonl").read_text()),
        "forks": _digest((run / "forks.jsonl").read_text()),
        "metrics": _rows(run / "metrics.jsonl"),
        "evaluations": _rows(run / "eval.jsonl"),
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    return [_timeless(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in row.items()
        if not key.startswith(TIMED) and not key.endswith("per_second") and key != "seconds"
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(names: list[str]) -> None:
    from goldens.cases import CASES, make_world

    goldens = json.loads(GOLDENS.read_text()) if GOLDENS.exists() else {}
    target = GOLDENS.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_world(Path(folder))
        for name in names or [*CASES, "smollm2"]:
            goldens[name] = {"machine": fingerprint(), **run_case(name, Path(folder))}
            print(name, goldens[name]["weights"][:12], flush=True)
            target.write_text(json.dumps(goldens, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

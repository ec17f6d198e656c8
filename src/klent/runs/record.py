"""run.json: versions, machine, command and duration of a run."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch

import klent
from klent.io.files import write_atomic


def start_record(run: Path, *, command: str) -> None:
    """Write ``run.json`` at the start; a resumed run keeps its first start, and its durations are summed."""
    import transformers

    path = run / "run.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {
        "klent": klent.__version__,
        "command": old.get("command", command),
        "started": old.get("started", now),
        "continued": now if old else None,
        "finished": None,
        "wall_seconds": old.get("wall_seconds", 0.0),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device_name(),
        "model_parameters": old.get("model_parameters"),
    }
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def finish_record(run: Path, model: torch.nn.Module) -> None:
    """Complete ``run.json`` when training ends."""
    path = run / "run.json"
    record = json.loads(path.read_text())
    now = datetime.now(UTC)
    began = datetime.fromisoformat(record["continued"] or record["started"])
    record["finished"] = now.isoformat(timespec="seconds")
    record["wall_seconds"] += (now - began).total_seconds()
    record["model_parameters"] = sum(p.numel() for p in model.parameters())
    write_atomic(path, json.dumps(record, indent=2) + "\n")


def device_name() -> str:
    """The name of the device, such as ``cpu, 2 threads``."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"

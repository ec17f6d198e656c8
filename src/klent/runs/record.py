"""run.json: versions, machine, command and duration of a run."""

import json
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

import klent
from klent.errors import first_line
from klent.io.files import write_atomic

NAME = "run.json"


def start_record(
    run: Path,
    *,
    command: str,
    changed: Sequence[Mapping[str, object]] = (),
    code: Mapping[str, object] | None = None,
    here: bool = False,
    on_damage: Callable[[str], None] = warnings.warn,
) -> None:
    """Write ``run.json`` at the start; a resumed run keeps its first start, and its durations are summed.

    Args:
        run: the run's folder.
        command: the command line that repeats the run.
        changed: what a resumed run does otherwise than before; added to the list.
        code: the user's Python files that run -> their hashes; a resumed run is held against them.
        here: relative paths of the recipe now start at the working folder.
        on_damage: told in one line of a file that cannot be read; what it said is lost, nothing else.
    """
    import transformers

    old = _read(run, on_damage)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    folder = old.get("folder")
    record = {
        "klent": klent.__version__,
        "command": old.get("command", command),
        "folder": str(Path.cwd()) if here or not isinstance(folder, str) else folder,
        "started": old.get("started", now),
        "continued": now if old else None,
        "finished": None,
        "wall_seconds": _seconds(old),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device_name(),
        "model_parameters": old.get("model_parameters"),
    }
    before = old.get("changed")
    if code:
        record["code"] = dict(code)
    changes = [*(before if isinstance(before, list) else []), *changed]
    if changes:
        record["changed"] = changes
    write_atomic(run / NAME, json.dumps(record, indent=2) + "\n")


def finish_record(run: Path, model: torch.nn.Module) -> None:
    """Complete ``run.json`` when training ends."""
    record = _read(run, warnings.warn)
    now = datetime.now(UTC)
    try:
        began = datetime.fromisoformat(str(record.get("continued") or record.get("started")))
        seconds = (now - began).total_seconds()
    except (ValueError, TypeError):  # damaged since the start
        seconds = 0.0
    record["finished"] = now.isoformat(timespec="seconds")
    record["wall_seconds"] = _seconds(record) + seconds
    record["model_parameters"] = sum(p.numel() for p in model.parameters())
    write_atomic(run / NAME, json.dumps(record, indent=2) + "\n")


def _read(run: Path, on_damage: Callable[[str], None]) -> dict[str, object]:
    """What ``run.json`` says; nothing where it is missing or damaged."""
    path = run / NAME
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        on_damage(f"{path}:{line} is damaged ({first_line(error)}). A new one is begun; the run goes on")
        return {}
    if not isinstance(record, dict):
        on_damage(f"{path}:1 is damaged: it is no JSON object. A new one is begun; the run goes on")
        return {}
    return record


def wall_seconds(run: Path) -> float | None:
    """How long a run has taken, in seconds; None where its record is missing or damaged."""
    record = _read(run, lambda line: None)
    return _seconds(record) if "wall_seconds" in record else None


def _seconds(record: Mapping[str, object]) -> float:
    value = record.get("wall_seconds")
    return float(value) if isinstance(value, int | float) else 0.0


def device_name() -> str:
    """The name of the device, such as ``cpu, 2 threads``."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads"

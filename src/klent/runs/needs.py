"""What a recipe needs of this machine: a model, extras, an engine; asked before anything is loaded."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

from klent.config import Recipe
from klent.errors import ModelError
from klent.models.locate import locate_model
from klent.runs.doctor import EXTRAS, Check, programs
from klent.tasks.sources import FILES


def examine_recipe(recipe: Recipe) -> list[Check]:
    """What a recipe needs of this machine, and the command that gets what it lacks; nothing is loaded."""
    checks = [_model(recipe.model)] if recipe.policy.language else []
    for extra in _extras_of(recipe):
        module, purpose = EXTRAS[extra]
        there = importlib.util.find_spec(module) is not None
        text = purpose if there else f"for {purpose}: pip install 'klent[{extra}]'"
        checks.append(Check(f"extra {extra}", "ok" if there else "missing", text))
    if recipe.rollout.engine == "vllm":
        checks += [replace(one, state="ok" if one.state == "ok" else "missing") for one in programs()]
    return checks


def _model(name: str) -> Check:
    try:
        found = locate_model(name)
    except ModelError as error:
        return Check("model", "missing", str(error))
    if isinstance(found, Path):
        return Check("model", "ok", str(found))
    return Check("model", "note", f"{found}, from the hub when the run starts, unless its cache has it")


def _extras_of(recipe: Recipe) -> list[str]:
    """Extras that the keys of a recipe ask for, each once."""
    values = recipe.model_dump(mode="json")
    task, rewards = values["task"], json.dumps([values["reward"], (values["eval"] or {}).get("reward")])
    data = [str(task[key]) for key in ("data", "pairs", "trajectories", "heldout_data") if task.get(key)]
    stored = any(name.endswith(".parquet") or not name.endswith(FILES) for name in data)
    wanted = {
        "tasks": "gym" in task or "math_verify" in rewards,
        "data": stored,
        "lora": recipe.lora is not None,
    }
    worlds = {name: task.get("env") == name for name in ("gymnasium", "textarena", "textworld", "verifiers")}
    trackers = {name: name in recipe.track for name in ("tensorboard", "wandb", "trackio")}
    return [extra for extra, asked in {**wanted, **worlds, **trackers}.items() if asked]

"""What a checkpoint's weights depend on: recipe, data, models and code; and what of it may change on the way."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import BaseModel

from klent.config.precision import renamed
from klent.config.rewards import REWARD_MODEL
from klent.errors import ConfigError
from klent.runs.code import MODELS, code_hashes, hash_file, model_folder, value_at

FREE = ("steps", "optimizer", "eval", "track", "checkpoint", "limits", "distributed", "device")
"""Sections of a recipe that may change between two parts of a run; the change is written to run.json."""
_CALLS = re.compile(
    r"(reward\.\d+|task)\.(timeout|memory_gb|workers|process)|bellman\.(beta|form)"
)  # how it is called, not what it says; and how values are played, which nothing trains on
_FILES = (
    *("task.data", "task.pairs", "task.trajectories", "task.heldout_data", "task.rows", "task.segments"),
    *("task.images", "policy.centre_on", "rollout.mixture.target.adapter"),
)
_HELD_OUT = ("task.heldout", "task.heldout_data", "task.heldout_split")
_READ = {
    ".json",
    ".jsonl",
    ".jinja",
    ".safetensors",
    ".model",
    ".txt",
    ".tiktoken",
    ".arrow",
    ".parquet",
    ".csv",
}


@dataclass(frozen=True)
class Fingerprint:
    """Taken at the start of each part of a run, stored in its checkpoints.

    Attributes:
        recipe: what may not change.
        free: what may.
        content: key of the recipe -> hash of the file or folder that it names.
        code: the user's Python file -> its hash.
    """

    recipe: dict[str, object] = field(default_factory=dict)
    free: dict[str, object] = field(default_factory=dict)
    content: dict[str, object] = field(default_factory=dict)
    code: dict[str, object] = field(default_factory=dict)

    def state(self) -> dict[str, object]:
        """As JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Change:
    """A key of the recipe, or a file, that is not as it was at the checkpoint."""

    key: str
    before: object
    after: object

    def __str__(self) -> str:
        return f"{self.key} (then {_shown(self.before)}, now {_shown(self.after)})"


def take_fingerprint(values: Mapping[str, object]) -> Fingerprint:
    """The fingerprint of a recipe's values as JSON holds them; reads the files that they name.

    A file is told by its content and not by its path, so a project may move. Every byte counts up to 256 MiB;
    of a larger file, 256 blocks spread over it.
    """
    content: dict[str, object] = {}
    for key in (*MODELS, *_FILES):
        value = value_at(values, key)
        if isinstance(value, str) and (path := _path(value, is_model=key in MODELS)):
            content[key] = _hash(path)
    for index, name in _reward_models(values):
        if path := _path(name, is_model=True):
            content[f"reward.{index}.model"] = _hash(path)
    if all(
        value_at(values, key) is None for key in _HELD_OUT
    ):  # then it decides which prompts are trained on
        content["eval.problems"] = value_at(values, "eval.problems") or 0
    # `method` only names where values came from, which are all here
    kept = {key: value for key, value in values.items() if key not in (*FREE, "method", "name")}
    return Fingerprint(
        recipe=dict(_without(kept, content)),
        free={key: values.get(key) for key in FREE},
        content=content,
        code=dict(code_hashes(values)),
    )


def defaults_of(section: BaseModel, prefix: str = "") -> frozenset[str]:
    """The dotted keys of a section's settings that have their default."""
    keys: set[str] = set()
    for name, setting in type(section).model_fields.items():
        value = getattr(section, name)
        if value == setting.get_default(call_default_factory=True):
            keys.add(f"{prefix}{name}")
        if isinstance(value, BaseModel):
            keys |= defaults_of(value, f"{prefix}{name}.")
    return frozenset(keys)


def refuse_other_inputs(
    run: Path, step: int, before: Mapping[str, object], now: Fingerprint, defaults: frozenset[str]
) -> None:
    """Refuse to go on from a checkpoint with a recipe, data or models other than its own.

    Args:
        run: the run's folder.
        step: of the checkpoint.
        before: the checkpoint's fingerprint, as JSON.
        now: the present one.
        defaults: keys that have their default: one that the checkpoint does not know is newer than it.

    Raises:
        ConfigError: the keys that differ, and what to do.
    """
    files = list(_differences(_part(before, "content"), now.content))
    told = {
        change.key for change in files
    }  # a name that is a file's is not a setting's: it would read "then null"
    changes = [
        change
        for change in _differences(renamed(_part(before, "recipe")), now.recipe)
        if not (change.before is None and change.key in defaults | told) and not _is_of_calls(change)
    ]
    problems = [str(change) for change in changes]
    for change in files:
        if change.key == "eval.problems":
            problems.append(f"{change}: it decides which prompts are held out, unless task.heldout does")
        else:
            problems.append(f"{change.key}: the files that it names are not those of then")
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise ConfigError(
            f"{run} cannot go on from step {step}: it was trained with another recipe, data or model:{listed}\n"
            f"Put back what it was in {run / 'config.yaml'} or in the files, or start another run with "
            f"name=... What may change in a run: {', '.join(FREE)}, bellman.beta and bellman.form, a reward's or an "
            "environment's timeout and memory_gb, and how many workers it has."
        )


def free_changes(before: Mapping[str, object], now: Fingerprint) -> list[Change]:
    """What differs and may: settings in ``FREE``, how rewards are called, and the code of files."""
    settings = _differences(_part(before, "free"), now.free)
    calls = filter(_is_of_calls, _differences(renamed(_part(before, "recipe")), now.recipe))
    return [*settings, *calls, *_differences(_part(before, "code"), now.code)]


def _is_of_calls(change: Change) -> bool:
    """Whether it leaves a reward's values alone; from null to workers, one that compares completions differs."""
    one_by_one = not change.key.endswith(".workers") or None not in (change.before, change.after)
    return _CALLS.fullmatch(change.key) is not None and one_by_one


def _part(fingerprint: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = fingerprint.get(name)
    return part if isinstance(part, Mapping) else {}


def _differences(before: object, now: object, key: str = "") -> Iterator[Change]:
    """Keys whose values differ; a key that is missing is null."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (then, this) in enumerate(zip(before, now, strict=True)):
            yield from _differences(then, this, f"{key}.{index}")
    elif before != now:
        yield Change(key, before, now)


def _without(
    values: Mapping[str, object], dotted: Mapping[str, object], prefix: str = ""
) -> dict[str, object]:
    """The values but for the keys of ``dotted``, and a user's file by its name alone."""
    result: dict[str, object] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key not in dotted:
            result[_short(name)] = _plain(value, dotted, f"{key}.")
    return result


def _plain(value: object, dotted: Mapping[str, object], prefix: str) -> object:
    if isinstance(value, Mapping):
        return _without(value, dotted, prefix)
    if isinstance(value, list | tuple):
        return [_plain(item, {}, prefix) for item in value]
    return _short(value) if isinstance(value, str) else value


def _reward_models(values: Mapping[str, object]) -> Iterator[tuple[int, str]]:
    """The reward models among the rewards."""
    rewards = values.get("reward")
    for index, reward in enumerate(rewards if isinstance(rewards, list | tuple) else ()):
        name = str(reward.get("fn")) if isinstance(reward, Mapping) else ""
        if name.startswith(f"{REWARD_MODEL}:"):
            yield index, name.removeprefix(f"{REWARD_MODEL}:")


def _short(text: str) -> str:
    if text.startswith(f"{REWARD_MODEL}:"):
        return f"{REWARD_MODEL}:{Path(text.removeprefix(f'{REWARD_MODEL}:')).name}"
    path, colon, function = text.rpartition(":")
    return f"{Path(path).name}{colon}{function}" if path.endswith(".py") else text


def _path(name: str, *, is_model: bool) -> Path | None:
    """The file or folder of a name, where there is one."""
    if is_model:
        return model_folder(name)
    path = Path(name).expanduser()
    return path if path.exists() else None


def _hash(path: Path) -> str:
    if path.is_file():
        return hash_file(path)
    digest = hashlib.sha256()
    for root, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "checkpoints")))
        for name in sorted(names):
            file = Path(root, name)
            if file.suffix in _READ and not name.startswith((".", "cache-")) and file.is_file():
                digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\0".encode())
    return digest.hexdigest()


def _shown(value: object) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

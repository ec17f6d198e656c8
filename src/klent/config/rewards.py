"""The rewards of a recipe: every way to write them, read into one type."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from klent.config.base import PositiveInt, Settings
from klent.errors import ConfigError
from klent.kit.names import nearest

#: rewards that look at completions only, never at an answer
WITHOUT_ANSWER = ("empo", "random")
SHIPPED = ("empo", "exact", "gsm8k", "gym", "last_number", "math_verify", "random")
#: rewards that compare the completions of a prompt
TOGETHER = ("empo",)
#: ``python:NAME`` is a function that was passed to klent.train from Python
PYTHON = "python"
#: ``reward_model:FOLDER`` is a reward model, which a recipe writes as {model: FOLDER}
REWARD_MODEL = "reward_model"
#: seconds; what waits for a reply counts in milliseconds, of which it can hold 24 days
LONGEST_TIMEOUT = 1_000_000.0
#: gigabytes that a process needs for Python alone
LEAST_MEMORY = 0.1


class Reward(Settings):
    """One reward; the reward of a completion is the weighted sum of all."""

    fn: str
    """Name of a shipped reward, `path/to/file.py:function`, or `reward_model:FOLDER`, written {model: FOLDER}."""
    weight: float = 1.0
    """Weight in the sum; a reward of weight 0 is measured and not summed."""
    timeout: Annotated[float, Field(gt=0, le=LONGEST_TIMEOUT)] = 10.0
    """Seconds allowed for each completion, however many are in a call; see docs/bring-your-own.md."""
    settings: dict[str, object] = Field(default_factory=dict)
    """More arguments of the function, e.g. {same: number} of empo."""
    workers: PositiveInt | None = None
    """Processes that each score one completion per call, side by side; null = one call with the whole batch."""
    memory_gb: Annotated[float, Field(ge=LEAST_MEMORY)] | None = None
    """Limit of the memory of the reward's process, and of each of its children; null = none."""

    process: bool = False
    """Run a reward model in a process of its own; false = in the training process, on its device."""

    @property
    def model_folder(self) -> str | None:
        """The folder, alias or hub id of a reward model; None for a function."""
        prefix = f"{REWARD_MODEL}:"
        return self.fn.removeprefix(prefix) if self.fn.startswith(prefix) else None

    @property
    def python_name(self) -> str | None:
        """The NAME of ``python:NAME``, a function that was passed from Python; None for any other reward."""
        return self.fn.removeprefix(f"{PYTHON}:") if self.fn.startswith(f"{PYTHON}:") else None

    def located(self, base: Path) -> "Reward":
        """The same reward with the path of its file absolute, taken from ``base``."""
        if self.model_folder is not None:
            folder = base / Path(self.model_folder).expanduser()
            found = f"{REWARD_MODEL}:{folder.resolve()}"
            return self.model_copy(update={"fn": found}) if folder.is_dir() else self
        path, _, function = self.fn.rpartition(":")
        if not path.endswith(".py"):
            return self
        return self.model_copy(update={"fn": f"{(base / Path(path).expanduser()).resolve()}:{function}"})


OPTIONS = tuple(name for name in Reward.model_fields if name != "fn")
"""Keys of a reward that may stand beside its name."""


def parse_rewards(value: object) -> tuple[Reward, ...]:
    """The rewards that a recipe asks for.

    Args:
        value: ``name``, ``{name: weight}``, ``{name: {setting: value}}``, or a list of names and ``{fn,
            weight, timeout, settings, workers, memory_gb}``. A name is that of a shipped reward,
            ``path/to/file.py:function``, ``package.module:function`` or ``python:NAME``. A mapping with one
            name may have options beside it: ``{name: weight, timeout: 60}``.

    Returns:
        The rewards in order, names as written. Nothing is imported and no file is opened.

    Raises:
        ConfigError: an unknown name or key, a weight or limit out of range, the same reward twice, or no
            reward with a weight other than 0.

    Examples:
        >>> [(r.fn, r.weight) for r in parse_rewards({"exact": 1, "last_number": 0.5})]
        [('exact', 1.0), ('last_number', 0.5)]
    """
    rewards = tuple(_read(item) for item in _entries(value))
    if not rewards:
        raise ConfigError("reward: is empty; name at least one reward, such as `reward: exact`")
    functions = [reward.located(Path()).fn for reward in rewards]  # one file may be written in two ways
    for index, reward in enumerate(rewards):
        if functions[index] in functions[:index]:
            raise ConfigError(f"reward: {reward.fn} is listed twice; keep one and give it the summed weight")
    if all(reward.weight == 0 for reward in rewards):
        raise ConfigError("reward: every weight is 0, so nothing would be learnt; give one reward a weight")
    return rewards


def short_names(rewards: Sequence[Reward]) -> list[str]:
    """A name of each reward for the metrics: the function's, with its file's where that is not unique.

    >>> short_names([Reward(fn="reward_model:runs/rm/final"), Reward(fn="exact")])
    ['model', 'exact']
    """
    taken = {"mean", "std", "unscorable"}  # these metrics exist already
    names = []
    for reward in rewards:
        source, _, function = reward.fn.rpartition(":")
        if reward.model_folder is not None:
            source, function = Path(reward.model_folder).name, "model"
        stem = Path(source).stem if source.endswith(".py") else source
        options = [function, f"{stem}.{function}", reward.fn]
        name = next((option for option in options if option not in taken), reward.fn)
        taken.add(name)
        names.append(name)
    return names


def _entries(value: object) -> Sequence[object]:
    """Every way to write rewards as a list of them."""
    if isinstance(value, str | Reward):
        return [value]
    if isinstance(value, Mapping):
        return [value] if {"fn", "model"} & value.keys() else _named_entries(value)
    if isinstance(value, list | tuple):
        return value
    raise ConfigError(f"reward: expected a name, a mapping or a list, not {_shown(value)}")


def _named_entries(value: Mapping[object, object]) -> list[dict[str, object]]:
    """A mapping of rewards by name; options beside a single one are its own."""
    options = {str(key): item for key, item in value.items() if key in OPTIONS}
    entries = [_entry(name, item) for name, item in value.items() if name not in OPTIONS]
    if options and len(entries) != 1:
        there = "no reward is named" if not entries else f"there are {len(entries)} rewards"
        example = "{fn: NAME, " + ", ".join(f"{key}: {item}" for key, item in options.items()) + "}"
        raise ConfigError(
            f"reward: {', '.join(options)} belongs to one reward, and {there}; write each as {example}"
        )
    return [{**entry, **options} for entry in entries]


def _entry(name: object, value: object) -> dict[str, object]:
    """``name: value`` of a mapping of rewards in full: a mapping holds settings, a number is the weight."""
    return {"fn": name, "settings" if isinstance(value, Mapping) else "weight": value}


def _read(item: object) -> Reward:
    if isinstance(item, Reward):
        return item
    fields = {"fn": item} if isinstance(item, str) else item
    if not isinstance(fields, Mapping):
        keys = ", ".join(Reward.model_fields)
        raise ConfigError(f"reward: expected a name or {{{keys}}}, not {_shown(item)}")
    if "model" in fields and "fn" not in fields:
        folder = fields["model"]
        if not isinstance(folder, str | Path) or not str(folder).strip():
            raise ConfigError(f"reward: `model` must name a reward model's folder, not {_shown(folder)}")
        others = {key: value for key, value in fields.items() if key != "model"}
        fields = {"fn": f"{REWARD_MODEL}:{folder}", **others}
    for key in fields:
        if key not in Reward.model_fields:
            keys = ", ".join(Reward.model_fields)
            hint = nearest(str(key), Reward.model_fields)
            raise ConfigError(f"reward: unknown key {key!r}{hint}; keys are {keys}")
    fn = fields.get("fn")
    if not isinstance(fn, str):
        raise ConfigError(f"reward: `fn` must name a function, not {_shown(fn)}")
    fn = _checked(fn.strip())
    process = _process(fields, fn)
    settings = fields.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"reward {fn}: settings must be a mapping of arguments, not {_shown(settings)}")
    return Reward(
        fn=fn,
        weight=_number(fields.get("weight", 1.0), f"reward {fn}: weight"),
        timeout=_timeout(fields.get("timeout", 10.0), fn),
        settings=dict(settings),
        workers=_workers(fields.get("workers"), fn),
        memory_gb=_memory(fields.get("memory_gb"), fn),
        process=process,
    )


def _process(fields: Mapping[object, object], fn: str) -> bool:
    """Whether a reward model has a process of its own; keys that nothing would read are refused."""
    process = fields.get("process", False)
    if not isinstance(process, bool):
        raise ConfigError(f"reward {fn}: process must be true or false, not {_shown(process)}")
    of_model = fn.startswith(f"{REWARD_MODEL}:")
    if process and not of_model:
        raise ConfigError(
            f"reward {fn}: process is for reward models; a function always runs in a process of its own. Remove it"
        )
    unread = [*(["settings", "workers"] if of_model else [])]
    limits = [] if process or not of_model else ["timeout", "memory_gb"]
    for key in [*unread, *limits]:
        value = fields.get(key)
        if value and value != Reward.model_fields[key].default:
            fix = "set process: true, or remove it" if key in limits else "remove it"
            raise ConfigError(f"reward {fn}: {key} is not used by a reward model; {fix}")
    return process


def _timeout(value: object, fn: str) -> float:
    timeout = _number(value, f"reward {fn}: timeout")
    if not 0 < timeout <= LONGEST_TIMEOUT:
        limits = f"more than 0 seconds and at most {LONGEST_TIMEOUT:,.0f}"
        raise ConfigError(f"reward {fn}: timeout must be {limits}, not {timeout:g}")
    return timeout


def _workers(value: object, fn: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(
            f"reward {fn}: workers must be a number of processes from 1 on, not {_shown(value)}"
        )
    if fn in TOGETHER:
        reason = "workers score each completion alone, and it compares those of a prompt"
        raise ConfigError(f"reward {fn}: {reason}; remove workers")
    return value


def _memory(value: object, fn: str) -> float | None:
    if value is None:
        return None
    memory = _number(value, f"reward {fn}: memory_gb")
    if memory < LEAST_MEMORY:
        raise ConfigError(f"reward {fn}: memory_gb must be at least {LEAST_MEMORY:g}, not {memory:g}")
    return memory


def _checked(fn: str) -> str:
    """``fn``, refused where it names no function."""
    if fn.startswith(f"{REWARD_MODEL}:"):
        return fn
    if ":" not in fn:
        if fn.endswith(".py"):
            raise ConfigError(f"reward: {fn} names a file and no function; write {fn}:FUNCTION")
        if fn not in SHIPPED:
            raise ConfigError(
                f"reward: unknown name {fn!r}{nearest(fn, SHIPPED)}; shipped are {', '.join(SHIPPED)}; "
                "your own is path/to/file.py:function or package.module:function"
            )
        return fn
    source, _, function = fn.rpartition(":")
    if not source or not function.isidentifier():
        raise ConfigError(f"reward: {fn!r} should read path/to/file.py:function or package.module:function")
    if not source.endswith(".py") and not all(part.isidentifier() for part in source.split(".")):
        reason = f"{source!r} is neither a .py file nor a module"
        raise ConfigError(f"reward: {reason}; write path/to/file.py:{function}")
    return fn


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    return f"{value!r} ({type(value).__name__})"

"""reasoning-gym, called in a process of its own: problems and scores as functions of their arguments alone.

Some generators read the order of a set or Python's global random state. The worker fixes the one, this file
the other.
"""

import dataclasses
import json
import random
from functools import lru_cache
from typing import Any

from klent.config.rewards import nearest
from klent.errors import ConfigError, DataError

BLOCK = 500  # indices that one seed serves: reasoning-gym's default, beyond which some generators fail


def items(name: str, config: dict[str, Any], seeds: list[int], indices: list[int]) -> list[list[str] | None]:
    """Question and answer at each (seed, index); None where the generator failed to make that one.

    Raises:
        ConfigError: no such generator or parameter, or parameters that it refuses.
        DataError: reasoning-gym is missing, or every one of several problems failed.
    """
    made: list[list[str] | None] = []
    failure: Exception | None = None
    for seed, index in zip(seeds, indices, strict=True):
        try:
            entry = _entry(name, json.dumps(config), seed, index)
        except (ConfigError, DataError):
            raise
        except Exception as error:
            failure = error
            made.append(None)
        else:
            made.append([str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])])
    if failure is not None and len(made) > 1 and not any(made):
        raise DataError(f"task.gym: {name} makes no problem: {_said(failure)}; {_parameters(name)}")
    return made


def score(source: dict[str, Any], text: str) -> float:
    """reasoning-gym's score of a text for the problem that ``source`` (name, config, seed, index) names."""
    _registry()  # says what to install where reasoning-gym is missing
    from reasoning_gym.utils import extract_answer

    key = (source["name"], json.dumps(source["config"]), source["seed"])
    entry = _entry(*key, source["index"])
    answer = extract_answer(text)
    return float(_dataset(*key).score_answer(text.strip() if answer is None else answer, entry))


@lru_cache(maxsize=256)
def _entry(name: str, config: str, seed: int, index: int) -> dict[str, Any]:
    dataset = _dataset(name, config, seed)
    random.seed(seed + index)
    try:
        return dataset[index]
    except Exception:
        _dataset.cache_clear()  # some generators shrink after a failure, and would depend on what came before
        raise


@lru_cache(maxsize=16)
def _dataset(name: str, config: str, seed: int) -> Any:
    datasets = _registry()
    if name not in datasets:
        raise ConfigError(f"task.gym: reasoning-gym has no generator {name!r}{nearest(name, datasets)}")
    parameters = json.loads(config)
    known = {field.name for field in dataclasses.fields(datasets[name][1])} - {"seed", "size"}
    for key in parameters:
        if key in ("seed", "size"):
            raise ConfigError(
                f"task.config: leave out {key!r}: problems follow the recipe's seed, without end"
            )
        if key not in known:
            hint = nearest(key, known)
            raise ConfigError(f"task.config: {name} has no parameter {key!r}{hint}; {_parameters(name)}")
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    try:
        if name == "composite":  # a mixture: its members are objects, which a recipe writes as mappings
            members = [{"weight": 1.0, "config": {}} | member for member in parameters.get("datasets") or []]
            parameters["datasets"] = [DatasetSpec(**member) for member in members]
        return reasoning_gym.create_dataset(name, **parameters, seed=seed, size=BLOCK)
    except Exception as error:
        raise ConfigError(f"task.config: {name} refuses: {_said(error)}; {_parameters(name)}") from error


@lru_cache(maxsize=1)
def _registry() -> dict[str, Any]:
    try:
        import reasoning_gym  # noqa: F401
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(f"task.gym needs reasoning-gym: pip install 'klent[tasks]' ({error})") from error
    return DATASETS


def _parameters(name: str) -> str:
    """The parameters of a generator with their defaults, for a message."""
    shown = []
    for field in dataclasses.fields(_registry()[name][1]):
        if field.name in ("seed", "size"):
            continue
        default = "" if field.default is dataclasses.MISSING else f"={field.default!r}"
        shown.append(field.name + (default if len(default) < 40 else ""))
    return f"parameters of {name}: {', '.join(shown) or 'none'}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__

"""reasoning-gym, called in a process of its own: problems and scores as functions of their arguments alone.

Some generators read the order of a set, which the worker's hash seed fixes, or Python's global random state,
which is seeded here.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypedDict

from klent.errors import ConfigError, DataError
from klent.kit.names import nearest

Parameters: TypeAlias = dict[str, object]


class Source(TypedDict):
    """Where a problem comes from; the same source gives the same problem."""

    name: str
    config: Parameters
    seed: int
    index: int


class Entry(TypedDict):
    """A problem of reasoning-gym; its other keys are for its own verifier."""

    question: str
    answer: str | None


class Dataset(Protocol):
    """A dataset of reasoning-gym, as far as it is used here."""

    def __getitem__(self, index: int) -> Entry: ...

    def score_answer(self, answer: str, entry: Entry) -> float: ...


BLOCK = 500  # indices that one seed serves: reasoning-gym's default, beyond which some generators fail


def items(
    name: str, config: Parameters, seeds: Sequence[int], indices: Sequence[int]
) -> list[list[str] | None]:
    """Question and answer at each (seed, index); None where the generator failed to make that one.

    Raises:
        ConfigError: no such generator or parameter, or parameters that it refuses.
        DataError: reasoning-gym is missing, or every one of several problems failed.
    """
    problems: list[list[str] | None] = []
    failure: Exception | None = None
    for seed, index in zip(seeds, indices, strict=True):
        try:
            entry = _entry(name, json.dumps(config), seed, index)
        except (ConfigError, DataError):
            raise
        except Exception as error:
            failure = error
            problems.append(None)
        else:
            problems.append([str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])])
    if failure is not None and len(problems) > 1 and not any(problems):
        raise DataError(f"task.gym: {name} makes no problem: {_reason(failure)}; {_parameters(name)}")
    return problems


def score(source: Source, text: str) -> float:
    """reasoning-gym's score of a text for the problem that ``source`` (name, config, seed, index) names."""
    _registry()  # says what to install where reasoning-gym is missing
    from reasoning_gym.utils import extract_answer

    key = (source["name"], json.dumps(source["config"]), source["seed"])
    entry = _entry(*key, source["index"])
    answer = extract_answer(text)
    return float(_dataset(*key).score_answer(text.strip() if answer is None else answer, entry))


@lru_cache(maxsize=256)
def _entry(name: str, config: str, seed: int, index: int) -> Entry:
    dataset = _dataset(name, config, seed)
    random.seed(seed + index)
    try:
        return dataset[index]
    except Exception:
        _dataset.cache_clear()  # some generators shrink after a failure, and would depend on what came before
        raise


@lru_cache(maxsize=16)
def _dataset(name: str, config: str, seed: int) -> Dataset:
    datasets = _registry()
    if name not in datasets:
        raise ConfigError(f"task.gym: reasoning-gym has no generator {name!r}{nearest(name, datasets)}")
    parameters = json.loads(config)
    valid = [field.name for field in _fields(name)]
    for key in parameters:
        if key in ("seed", "size"):
            raise ConfigError(
                f"task.config: remove {key!r}: problems follow the recipe's seed and never run out"
            )
        if key not in valid:
            hint = nearest(key, valid)
            raise ConfigError(f"task.config: {name} has no parameter {key!r}{hint}; {_parameters(name)}")
    import reasoning_gym
    from reasoning_gym.composite import DatasetSpec

    try:
        if name == "composite":  # a mixture: its members are objects, which a recipe writes as mappings
            members = [{"weight": 1.0, "config": {}} | member for member in parameters.get("datasets") or []]
            parameters["datasets"] = [DatasetSpec(**member) for member in members]
        dataset: Dataset = reasoning_gym.create_dataset(name, **parameters, seed=seed, size=BLOCK)
    except Exception as error:
        raise ConfigError(f"task.config: {name} refuses: {_reason(error)}; {_parameters(name)}") from error
    return dataset


@lru_cache(maxsize=1)
def _registry() -> Mapping[str, Sequence[Any]]:
    """For each generator its class and the class of its parameters."""
    try:
        import reasoning_gym  # noqa: F401
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise DataError(f"task.gym needs reasoning-gym: pip install 'klent[tasks]' ({error})") from error
    registry: Mapping[str, Sequence[Any]] = DATASETS
    return registry


def _fields(name: str) -> list[dataclasses.Field[object]]:
    return [field for field in dataclasses.fields(_registry()[name][1]) if field.name not in ("seed", "size")]


def _parameters(name: str) -> str:
    """The parameters of a generator with their defaults, for a message."""
    shown = []
    for field in _fields(name):
        default = "" if field.default is dataclasses.MISSING else f"={field.default!r}"
        shown.append(field.name + (default if len(default) < 40 else ""))
    return f"parameters of {name}: {', '.join(shown) or 'none'}"


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

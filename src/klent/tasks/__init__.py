"""Problems and rewards: where prompts come from and how completions are scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from klent.config.rewards import RewardSpec, nearest, parse_rewards
from klent.errors import ConfigError
from klent.streams.prompt import Prompt
from klent.tasks.data import DataTask
from klent.tasks.gym import GymTask
from klent.tasks.scorer import Scorer, Scores
from klent.tasks.task import Task

__all__ = [
    "DATA_KEYS",
    "GYM_KEYS",
    "DataTask",
    "GymTask",
    "Prompt",
    "RewardSpec",
    "Scorer",
    "Scores",
    "Task",
    "load_task",
    "parse_rewards",
]

GYM_KEYS = ("gym", "config", "only", "system", "seed")
DATA_KEYS = (
    "data",
    "split",
    "subset",
    "heldout",
    "heldout_data",
    "heldout_split",
    "prompt_column",
    "only",
    "system",
    "seed",
)


def load_task(
    config: Mapping[str, Any],
    *,
    seed: int,
    heldout: int,
    needed: Sequence[str] = (),
    base: Path = Path("."),
) -> Task:
    """The task that a recipe's ``task:`` describes.

    Args:
        config: ``{gym, config, only, system, seed}`` or ``{data, split, subset, heldout, heldout_data,
            heldout_split, prompt_column, only, system, seed}``; keys whose value is None count as left out.
        seed: decides problems, split and order, unless ``config`` has a ``seed`` of its own.
        heldout: distinct prompts to keep out of training for evaluation. A data task keeps what its own
            ``heldout`` says, and without that this many, but at most a tenth of its distinct prompts.
        needed: columns that every row must have, such as ``completion`` for supervised training.
        base: folder from which relative data paths are looked up.

    Raises:
        ConfigError: neither or both of ``gym`` and ``data``, an unknown key, or a value out of range.
        DataError: data that cannot be used.

    Examples:
        >>> load_task({"gim": "chain_sum"}, seed=0, heldout=0)
        Traceback (most recent call last):
        ...
        klent.errors.ConfigError: task: give `gym` (a reasoning-gym generator) or `data` (a file or ...
    """
    given = {key: value for key, value in config.items() if value is not None}
    if ("gym" in given) == ("data" in given):
        which = "both" if "gym" in given else f"{', '.join(map(repr, given)) or 'nothing'}"
        raise ConfigError(
            "task: give `gym` (a reasoning-gym generator) or `data` (a file or dataset), and not both; "
            f"here: {which}"
        )
    keys = GYM_KEYS if "gym" in given else DATA_KEYS
    for key in given:
        if key not in keys:
            raise ConfigError(f"task: unknown key {key!r}{nearest(key, keys)}; keys are {', '.join(keys)}")
    seed = given.pop("seed", seed)
    if "gym" in given:
        if needed:
            raise ConfigError(f"task.gym: generated problems have no {', '.join(needed)}; use task.data")
        return GymTask(
            given["gym"],
            given.get("config"),
            seed,
            given.get("system"),
            heldout_count=heldout,
            only=given.get("only"),
        )
    return DataTask(**given, seed=seed, heldout_count=heldout, needed=needed, base=base)

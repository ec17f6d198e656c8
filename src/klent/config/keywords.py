"""Python values as a layer of a recipe: what a keyword argument means is what its YAML would mean."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from klent.config.base import Settings
from klent.config.layers import Layer
from klent.config.yaml_text import RecipeDumper, parse_overrides
from klent.errors import ConfigError


def keyword_layer(values: Mapping[str, object], source: str) -> Layer:
    """Keyword arguments as one layer; keys may be dotted, and of two for the same key the later one counts.

    Args:
        values: recipe keys and their values: numbers, text, paths, lists, mappings, sections, None.
        source: the name of the caller, for messages.

    Raises:
        ConfigError: a value that a recipe cannot hold.

    Examples:
        >>> keyword_layer({"optimizer.lr": 1e-5, "rollout": {"stop": ("END",)}}, "klent.train").values
        {'optimizer': {'lr': 1e-05}, 'rollout': {'stop': ['END']}}
    """
    written = [f"{key}={_as_yaml(key, value, source)}" for key, value in values.items()]
    return parse_overrides(written, source=source)


def recipe_values(values: Mapping[str, object], source: str) -> dict[str, object]:
    """A whole recipe given as a mapping, with the values that its YAML would have.

    Raises:
        ConfigError: a value that a recipe cannot hold.
    """
    return {**keyword_layer(values, source).values}


def _as_yaml(key: str, value: object, source: str) -> str:
    try:
        text: str = yaml.dump(
            _plain(value),
            Dumper=RecipeDumper,
            default_flow_style=True,
            sort_keys=False,
            allow_unicode=True,
            width=float("inf"),
        )
    except yaml.YAMLError as error:
        kind = type(error.args[-1] if error.args else value).__name__
        raise ConfigError(
            f"{source}: {key}: a recipe cannot hold a {kind}; give numbers, text, lists and mappings "
            "(only a reward may be a Python function)"
        ) from error
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: object) -> object:
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

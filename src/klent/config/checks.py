"""The functions of a recipe: whether its terms and selectors exist, and take the settings they are given."""

from collections.abc import Iterable
from typing import Any

from klent.config import binding
from klent.config.layers import KeyPath
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.errors import ConfigError
from klent.kit.names import nearest


def bind_terms(values: dict[str, Any], problems: list[Problem]) -> None:
    """Check the functions and settings of every term and selector, and fill in their defaults."""
    kinds: tuple[binding.Kind, ...] = ("loss", "token_reward", "advantage")
    for kind in kinds:
        terms = values.get(kind)
        if not isinstance(terms, dict):
            continue
        for name, settings in terms.items():
            if isinstance(settings, dict):
                terms[name] = _bind(kind, (kind, name), settings, problems)
    select = values.get("select")
    for stream, choice in select.items() if isinstance(select, dict) else ():
        for name, settings in choice.items() if isinstance(choice, dict) else ():
            if isinstance(settings, dict):
                choice[name] = _bind("selector", ("select", stream, name), settings, problems)


def _bind(
    kind: binding.Kind, path: KeyPath, settings: dict[str, Any], problems: list[Problem]
) -> dict[str, Any]:
    name = str(path[-1])
    valid = binding.shipped(kind)
    if ".py:" not in name and name not in valid:
        problems.append(Problem(path, _wrong_function(kind, name, valid)))
        return settings
    try:
        function = binding.resolve(name)
    except ConfigError as error:
        problems.append(Problem(path, str(error)))
        return settings
    filled, wrong = binding.check_settings(function, settings)
    for key, reason in wrong:
        problems.append(Problem((*path, key) if key else path, reason))
    if not wrong and (refusal := binding.try_out(kind, function, filled)):
        blamed = sorted((key for key in settings if key in refusal), key=refusal.index)
        problems.append(Problem((*path, *blamed[:1]), refusal))
    return filled


_SECTION = {"selector": "select"}


def _wrong_function(kind: binding.Kind, name: str, valid: Iterable[str]) -> str:
    listed = f"valid here: {', '.join(sorted(valid))}, or path.py:function"
    try:
        other = binding.kind_of(binding.resolve(name))
    except ConfigError:
        return f"klent.objectives has no such function{nearest(name, valid)}; {listed}"
    if other is None:
        return f"{name} estimates or selects, and cannot be a {kind}; {listed}"
    place = "select.NAME" if other == "selector" else other
    return f"{name} does not go under {_SECTION.get(kind, kind)} but under `{place}`; {listed}"


def streams(recipe: Recipe) -> set[str]:
    """Everything that a recipe's terms and selectors read of a token: `logp`, `logp_ref`, `advantage`, ..."""
    selectors = [name for choice in (recipe.select or {}).values() for name in choice]
    names = [*recipe.loss, *(recipe.token_reward or {}), *selectors]
    return {stream for name in names for stream in binding.streams_of(binding.resolve(name))}

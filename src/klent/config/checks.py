"""The functions of a recipe: whether its terms and selectors exist, and take the settings they are given."""

from typing import Any

from klent.config import binding
from klent.config.layers import KeyPath
from klent.config.places import wrong_function
from klent.config.problems import Problem
from klent.config.recipe import Recipe
from klent.config.trial import try_out


def bind_terms(values: dict[str, Any], problems: list[Problem]) -> None:
    """Check the functions and settings of every term and selector, and fill in their defaults."""
    sections: tuple[binding.Section, ...] = ("loss", "token_reward", "advantage")
    for section in sections:
        terms = values.get(section)
        if not isinstance(terms, dict):
            continue
        for name, settings in terms.items():
            if isinstance(settings, dict):
                terms[name] = _bind(section, (section, name), settings, problems)
    nested: tuple[binding.Section, ...] = ("select", "weigh")
    for section in nested:
        entries = values.get(section)
        for key, choice in entries.items() if isinstance(entries, dict) else ():
            for name, settings in choice.items() if isinstance(choice, dict) else ():
                if isinstance(settings, dict):
                    choice[name] = _bind(section, (section, key, name), settings, problems)


def _bind(
    section: binding.Section, path: KeyPath, settings: dict[str, object], problems: list[Problem]
) -> dict[str, object]:
    """Settings with their defaults; everything wrong with the function or with them is added to problems."""
    name = str(path[-1])
    if wrong := wrong_function(section, name):
        problems.append(Problem(path, wrong))
        return settings
    function = binding.resolve(name)
    values, wrong_settings = binding.check_settings(function, settings)
    for key, reason in wrong_settings:
        problems.append(Problem((*path, key) if key else path, reason))
    if not wrong_settings and (refusal := try_out(binding.kind_in(section, function), function, values)):
        blamed = sorted((key for key in settings if key in refusal), key=refusal.index)
        problems.append(Problem((*path, *blamed[:1]), refusal))
    return values


def streams(recipe: Recipe) -> set[str]:
    """Every stream and choice that a recipe's terms, selectors and weights read: `logp`, `advantage`, ..."""
    nested = [*(recipe.select or {}).values(), *(recipe.weigh or {}).values()]
    terms = [recipe.loss, recipe.token_reward or {}, *nested]
    return {
        stream
        for some in terms
        for name, settings in some.items()
        for stream in binding.streams_of(binding.resolve(name), settings)
    }

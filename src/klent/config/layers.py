"""Layers of a recipe: the method's preset, the recipe over it, the command line over that."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations

from klent.config.base import Yaml
from klent.config.rewards import OPTIONS
from klent.config.task import SOURCES
from klent.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass
class Layer:
    """Values, and where each of them was written.

    Attributes:
        values: what the YAML says, as dicts, lists and scalars.
        origins: for each key path, ``FILE:LINE`` or the override that set it.
        source: the name of the whole layer.
    """

    values: dict[str, Yaml]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    source: str = "recipe"

    def origin(self, path: KeyPath) -> str:
        """Where ``path`` was written, or else the nearest key that contains it."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[:-1]
        return self.source


def merge(lower: Layer, upper: Layer) -> Layer:
    """``upper`` over ``lower``.

    Mappings merge key by key, anything else is replaced. Eight keys have a rule of their own:

    - ``loss`` and ``token_reward`` are sums: terms are added, and null removes a term;
    - ``advantage``, ``reward`` and ``eval.reward`` are choices: a function that the lower layer lacks
      replaces them whole; an option such as ``reward.timeout`` is that of the lower layer's reward;
    - ``select`` and ``weigh`` hold one function under each name, and null removes a name;
    - ``thermostat``: another kind of target, or of a band's edge, replaces that whole;
    - ``task``: another generator, or data instead of a generator, replaces it; only ``system`` is kept.
    """
    values = dict(lower.values)
    for key, value in upper.values.items():
        _refuse_missing(key, values.get(key), value, upper)
        values[key] = _RULES.get(key, _merge_mapping)(values.get(key), value)
    return Layer(values, {**lower.origins, **upper.origins}, lower.source)


_REMOVABLE = ("loss", "token_reward", "advantage", "select", "weigh")  # null removes one of their entries


def _refuse_missing(key: str, lower: Yaml, upper: Yaml, layer: Layer) -> None:
    """Null removes a term of the lower layer; where there is no such term, it is most likely a slip."""
    if key not in _REMOVABLE or not isinstance(upper, dict):
        return
    lower = _named(lower)
    names = list(lower) if isinstance(lower, dict) else []
    for name, value in upper.items():
        if value is None and name not in names:
            raise ConfigError(
                f"{layer.origin((key, name))}: {key}.{name} is null, which removes it, but {key} has no such "
                f"entry (it has {', '.join(names) or 'none'}); to add it, write {name}: {{}}"
            )


def _merge_mapping(lower: Yaml, upper: Yaml) -> Yaml:
    if not isinstance(upper, dict) or not isinstance(lower, dict):
        return upper
    return {**lower, **{key: _merge_mapping(lower.get(key), value) for key, value in upper.items()}}


def _merge_terms(lower: Yaml, upper: Yaml) -> Yaml:
    lower, upper = _named(lower), _named(upper)
    if not isinstance(upper, dict):
        return upper
    merged = _merge_mapping(lower if isinstance(lower, dict) else {}, upper)
    assert isinstance(merged, dict)
    return {name: value for name, value in merged.items() if value is not None}


def _merge_choice(lower: Yaml, upper: Yaml) -> Yaml:
    lower, upper = _named(lower), _named(upper)
    if isinstance(upper, dict) and isinstance(lower, dict) and upper.keys() <= lower.keys():
        return _merge_terms(lower, upper)
    return _merge_terms({}, upper)


def _merge_task(lower: Yaml, upper: Yaml) -> Yaml:
    if not isinstance(upper, dict) or not isinstance(lower, dict):
        return upper
    another_generator = "gym" in upper and upper["gym"] != lower.get("gym")
    another_kind = any(one in upper and other in lower for one, other in permutations(SOURCES, 2))
    if another_generator or another_kind:
        lower = {key: value for key, value in lower.items() if key == "system"}
    return _merge_mapping(lower, upper)


def _merge_select(lower: Yaml, upper: Yaml) -> Yaml:
    if not isinstance(upper, dict):
        return upper
    lower = lower if isinstance(lower, dict) else {}
    merged = {**lower, **{name: _merge_choice(lower.get(name), value) for name, value in upper.items()}}
    return {name: value for name, value in merged.items() if value is not None and value != {}}


def _merge_thermostat(lower: Yaml, upper: Yaml) -> Yaml:
    merged = _merge_mapping(lower, upper)
    if isinstance(lower, dict) and isinstance(upper, dict) and isinstance(merged, dict):
        for key in {"target", "band"} & upper.keys():
            merged[key] = _merge_entropy(lower.get(key), upper[key])
    return merged


def _merge_entropy(lower: Yaml, upper: Yaml) -> Yaml:
    """A target over a target, or a band over a band, whose edges are targets."""
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    if upper.keys() & {"low", "high"}:
        return {**lower, **{edge: _merge_entropy(lower.get(edge), value) for edge, value in upper.items()}}
    return _merge_mapping(lower, upper) if upper.keys() <= lower.keys() else upper


def _merge_reward(lower: Yaml, upper: Yaml) -> Yaml:
    lower, upper = _weighted(lower), _weighted(upper)
    if not isinstance(upper, dict):
        return upper
    options = {key: value for key, value in upper.items() if key in OPTIONS and "fn" not in upper}
    named = {key: value for key, value in upper.items() if key not in options}
    chosen = _merge_choice(lower, named) if named else lower
    if not options:
        return chosen
    if isinstance(chosen, list):  # of one reward, or it is not said whose option it is
        entries = [_weighted(item) for item in chosen]
        chosen = (
            entries[0] if len(entries) == 1 else {f"reward {index + 1}": {} for index in range(len(entries))}
        )
    return {**(chosen if isinstance(chosen, dict) else {}), **options}


def _merge_eval(lower: Yaml, upper: Yaml) -> Yaml:
    merged = _merge_mapping(lower, upper)
    if isinstance(lower, dict) and isinstance(upper, dict) and isinstance(merged, dict) and "reward" in upper:
        merged["reward"] = _merge_reward(lower.get("reward"), upper["reward"])
    return merged


def _weighted(value: Yaml) -> Yaml:
    """``exact`` is short for ``{exact: 1.0}`` where it is a reward."""
    return {value: 1.0} if isinstance(value, str) else value


def _named(value: Yaml) -> Yaml:
    """``leave_one_out`` is short for ``{leave_one_out: {}}``."""
    return {value: {}} if isinstance(value, str) else value


_RULES: dict[str, Callable[[Yaml, Yaml], Yaml]] = {
    "loss": _merge_terms,
    "token_reward": _merge_terms,
    "advantage": _merge_choice,
    "reward": _merge_reward,
    "eval": _merge_eval,
    "select": _merge_select,
    "weigh": _merge_select,
    "thermostat": _merge_thermostat,
    "task": _merge_task,
}

"""YAML with places: every key of a recipe remembers the file and line that it was written on.

A recipe is built from layers: the method's preset, the recipe over it, the command line over that.
YAML is read by the rules of version 1.2: ``2e-5`` is a number; ``on``, ``off``, ``yes``, ``no`` are words.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from klent.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass
class Layer:
    """Values, and where each of them was written.

    Attributes:
        values: what the YAML says, as dicts, lists and scalars.
        places: for each key path, ``FILE:LINE`` or the override it came from.
        source: the name of the whole layer.
    """

    values: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    source: str = "recipe"

    def place(self, path: KeyPath) -> str:
        """Where ``path`` was written, or the nearest key around it."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return self.source


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_SCALARS = [
    ("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
    ("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
]


class RecipeDumper(yaml.SafeDumper):
    """SafeDumper that quotes every string which YAML 1.1 or 1.2 would read as something else."""


RecipeDumper.yaml_implicit_resolvers = {
    k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in _SCALARS:
    RecipeLoader.add_implicit_resolver(_tag, _pattern, _first)
    RecipeDumper.add_implicit_resolver(_tag, _pattern, _first)


def read_layer(file: Path, shown: str | None = None) -> Layer:
    """Read a recipe file; ``shown`` is the name that error messages use for it."""
    shown = shown or str(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read: {error}") from error
    layer = Layer({}, source=shown)
    value = parse_yaml(text, layer)
    if not isinstance(value, dict):
        raise ConfigError(f"{shown}: a recipe is a list of `key: value` lines; this file has none")
    layer.values = value
    return layer


def parse_yaml(text: str, layer: Layer, at: KeyPath = ()) -> Any:
    """The value of a YAML text; the places of its keys are noted in ``layer``, below the key path ``at``."""
    try:
        node = yaml.compose(text, Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and not at else ""
        raise ConfigError(f"{layer.source}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{layer.source}: not valid YAML: {error}") from error
    return None if node is None else _value(node, at, layer)


def _value(node: yaml.Node, path: KeyPath, layer: Layer) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, layer)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, index), layer) for index, item in enumerate(node.value)]
    text, kind = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
    match kind:
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    line = node.start_mark.line + 1
    raise ConfigError(f"{layer.source}:{line}: the YAML tag {node.tag} has no meaning in a recipe; remove it")


def _mapping(node: yaml.MappingNode, path: KeyPath, layer: Layer) -> dict[str, Any]:
    result: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{layer.source}:{line}: a key must be a word, not a list or a mapping")
        key = key_node.value
        if key in result:
            raise ConfigError(
                f"{layer.source}:{line}: `{'.'.join(map(str, (*path, key)))}` is written twice "
                f"(first on line {lines[key]}); keep one of them"
            )
        lines[key] = line
        layer.places[(*path, key)] = f"{layer.source}:{line}"
        result[key] = _value(value_node, (*path, key), layer)
    return result


# A segment of a dotted key may itself hold dots where it names a function of the user's: loss.my.py:fn.coef
_USER_FUNCTION = re.compile(
    r"^(loss|token_reward|advantage|reward|select\.[^.]+)\.(.*?\.py:[^.]+)(?:\.(.+))?$"
)


def parse_overrides(overrides: Iterable[str], source: str = "command line") -> Layer:
    """``key=value`` arguments as one layer; of two for the same key the later one counts."""
    layer = Layer({}, source=source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(_split(key)):
            raise ConfigError(f"{source}: `{override}` should be key=value, e.g. optimizer.lr=1e-5")
        path = _split(key)
        here = Layer({}, source=f"{source}: {override}")
        value = parse_yaml(text, here, path)
        target = layer.values
        for segment in path[:-1]:
            if not isinstance(target.get(segment), dict):
                target[segment] = {}
            target = target[segment]
        target[path[-1]] = value
        for depth in range(1, len(path) + 1):
            layer.places[path[:depth]] = f"{source}: {override}"
        layer.places.update(dict.fromkeys(here.places, f"{source}: {override}"))
    return layer


def _split(key: str) -> tuple[str, ...]:
    if found := _USER_FUNCTION.match(key):
        field_name, function, rest = found.groups()
        return (*field_name.split("."), function, *(rest.split(".") if rest else ()))
    return tuple(key.split("."))


def merge(lower: Layer, upper: Layer) -> Layer:
    """``upper`` over ``lower``.

    Mappings merge key by key, anything else is replaced. Six keys have a rule of their own:

    - ``loss`` and ``token_reward`` are sums: terms are added, and a term set to null is taken out;
    - ``advantage`` and ``reward`` are choices: a function that the lower layer lacks replaces them whole;
    - ``select`` holds a choice under each name, and null takes a name out;
    - ``thermostat.target``: another kind of target replaces it whole;
    - ``task``: another generator, or data instead of a generator, starts it anew; only ``system`` stays.
    """
    values = dict(lower.values)
    for key, new in upper.values.items():
        _refuse_missing(key, values.get(key), new, upper)
        values[key] = _RULES.get(key, _merge_mapping)(values.get(key), new)
    return Layer(values, {**lower.places, **upper.places}, lower.source)


_TAKEN_OUT = ("loss", "token_reward", "advantage", "select")  # null takes an entry of these out


def _refuse_missing(key: str, old: Any, new: Any, upper: Layer) -> None:
    """Null takes out a term that is there; of one that is not it is most likely a slip."""
    there = _named(old)
    there = list(there) if isinstance(there, dict) else []
    for name, value in new.items() if key in _TAKEN_OUT and isinstance(new, dict) else ():
        if value is None and name not in there:
            raise ConfigError(
                f"{upper.place((key, name))}: {key}.{name} is null, which takes it out, but it is not there "
                f"({', '.join(there) or 'nothing is'}); to put it in, write {name}: {{}}"
            )


def _merge_mapping(old: Any, new: Any) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    return {**old, **{key: _merge_mapping(old.get(key), value) for key, value in new.items()}}


def _merge_terms(old: Any, new: Any) -> Any:
    old, new = _named(old), _named(new)
    if not isinstance(new, dict):
        return new
    merged = _merge_mapping(old if isinstance(old, dict) else {}, new)
    return {name: value for name, value in merged.items() if value is not None}


def _merge_choice(old: Any, new: Any) -> Any:
    old, new = _named(old), _named(new)
    if isinstance(new, dict) and isinstance(old, dict) and new.keys() <= old.keys():
        return _merge_terms(old, new)
    return _merge_terms({}, new)


def _merge_task(old: Any, new: Any) -> Any:
    if not isinstance(new, dict) or not isinstance(old, dict):
        return new
    another_generator = "gym" in new and new["gym"] != old.get("gym")
    another_kind = ("data" in new and "gym" in old) or ("gym" in new and "data" in old)
    if another_generator or another_kind:
        old = {key: value for key, value in old.items() if key == "system"}
    return _merge_mapping(old, new)


def _merge_select(old: Any, new: Any) -> Any:
    if not isinstance(new, dict):
        return new
    old = old if isinstance(old, dict) else {}
    merged = {**old, **{stream: _merge_choice(old.get(stream), value) for stream, value in new.items()}}
    return {stream: value for stream, value in merged.items() if value is not None and value != {}}


def _merge_thermostat(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict) and "target" in new:
        same = isinstance(old.get("target"), dict) and isinstance(new["target"], dict)
        if not (same and new["target"].keys() <= old["target"].keys()):
            old = {key: value for key, value in old.items() if key != "target"}
    return _merge_mapping(old, new)


def _named(value: Any) -> Any:
    """``leave_one_out`` is short for ``{leave_one_out: {}}``."""
    return {value: {}} if isinstance(value, str) else value


def _merge_reward(old: Any, new: Any) -> Any:
    def weighted(value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value

    return _merge_choice(weighted(old), weighted(new))


_RULES = {
    "loss": _merge_terms,
    "token_reward": _merge_terms,
    "advantage": _merge_choice,
    "reward": _merge_reward,
    "select": _merge_select,
    "thermostat": _merge_thermostat,
    "task": _merge_task,
}

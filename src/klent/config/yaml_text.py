"""Text to layers: every key of a recipe remembers the file and line that it was written on.

YAML is read by the rules of version 1.2: ``2e-5`` is a number; ``on``, ``off``, ``yes`` and ``no`` are text.
A recipe may come from anywhere, so what reading it may cost is limited: its size, its depth, and how much its
aliases may add up to.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from klent.config.base import Yaml
from klent.config.layers import KeyPath, Layer
from klent.errors import ConfigError


class RecipeLoader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


SIZE = 2**20  # characters
DIGITS = 1000  # of a whole number
DEPTH = 32  # levels of lists and mappings
VALUES = 50_000  # with every alias written out

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
        with file.open(encoding="utf-8") as stream:
            text = stream.read(SIZE + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read: {error}") from error
    layer = Layer({}, source=shown)
    value = parse_yaml(text, layer)
    if not isinstance(value, dict):
        raise ConfigError(f"{shown}: a recipe is a list of `key: value` lines; this file has none")
    layer.values = value
    return layer


def parse_yaml(text: str, layer: Layer, path: KeyPath = ()) -> Yaml:
    """The value of a YAML text; ``layer`` gets the origins of its keys, which are below the key ``path``.

    Raises:
        ConfigError: no YAML, or more of it than a recipe can need: see ``SIZE``, ``DEPTH`` and ``VALUES``.
    """
    if len(text) > SIZE:
        raise ConfigError(f"{layer.source}: longer than {SIZE:,} characters; put data into a file of its own")
    try:
        _refuse_depth(text, layer)
        node = yaml.compose(text, Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and not path else ""
        raise ConfigError(f"{layer.source}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{layer.source}: not valid YAML: {error}") from error
    return None if node is None else _Reader(layer, len(path)).value(node, path)


def _refuse_depth(text: str, layer: Layer) -> None:
    """Before anything recurses: the events of YAML are read one after the other, however deep it is."""
    depth = 0
    for event in yaml.parse(text, Loader=RecipeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH:
            raise _too_deep(event.start_mark.line + 1 if event.start_mark else 1, layer)


def _too_deep(line: int, layer: Layer) -> ConfigError:
    return ConfigError(f"{layer.source}:{line}: nested more than {DEPTH} levels deep; no key of a recipe is")


class _Reader:
    """Nodes to values, with a count of them: an alias is a line, and what it stands for may be a million."""

    def __init__(self, layer: Layer, above: int) -> None:
        self.layer = layer
        self.above = above
        self.count = 0

    def value(self, node: yaml.Node, path: KeyPath) -> Yaml:
        line = node.start_mark.line + 1
        self.count += 1
        if self.count > VALUES:
            reason = f"more than {VALUES:,} values, with every alias (*name) written out"
            raise ConfigError(f"{self.layer.source}:{line}: {reason}; put data into a file of its own")
        if len(path) - self.above > DEPTH:  # an alias that contains itself
            raise _too_deep(line, self.layer)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(node, line, self.layer)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Yaml]:
        result: dict[str, Yaml] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            where = f"{self.layer.source}:{line}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be plain text, not a list or a mapping")
            key = key_node.value
            if key in result:
                raise ConfigError(
                    f"{where}: `{'.'.join(map(str, (*path, key)))}` is written twice "
                    f"(first on line {lines[key]}); keep one of them"
                )
            lines[key] = line
            self.layer.origins[(*path, key)] = where
            result[key] = self.value(value_node, (*path, key))
        return result


def _scalar(node: yaml.Node, line: int, layer: Layer) -> Yaml:
    text, kind = str(node.value), node.tag.removeprefix("tag:yaml.org,2002:")
    match kind:
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            if len(text) > DIGITS:
                raise ConfigError(
                    f"{layer.source}:{line}: a number of {len(text):,} digits; quote it as text"
                )
            return int(text)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise ConfigError(f"{layer.source}:{line}: the YAML tag {node.tag} has no meaning in a recipe; remove it")


# A segment of a dotted key may itself hold dots where it names a function of the user's: loss.my.py:fn.coef
_USER_FUNCTION = re.compile(
    r"^(loss|token_reward|advantage|(?:eval\.)?reward|select\.[^.]+)\.(.*?\.py:[^.]+)(?:\.(.+))?$"
)

# Keys whose value may be the name of a function, with its settings below
_BY_NAME = re.compile(r"^(loss|token_reward|advantage|(eval\.)?reward|select\.[^.]+)$")


def parse_overrides(overrides: Iterable[str], source: str = "command line") -> Layer:
    """``key=value`` arguments as one layer; of two for the same key the later one counts."""
    layer = Layer({}, source=source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(_split(key)):
            raise ConfigError(f"{source}: `{override}` should be key=value, e.g. optimizer.lr=1e-5")
        path = _split(key)
        argument = Layer({}, source=f"{source}: {override}")
        _put(layer.values, path, parse_yaml(text, argument, path))
        for depth in range(1, len(path) + 1):
            layer.origins[path[:depth]] = argument.source
        layer.origins.update(dict.fromkeys(argument.origins, argument.source))
    return layer


def _put(values: dict[str, Yaml], path: tuple[str, ...], value: Yaml) -> None:
    """Set a value at a key path, with the mappings that lead to it.

    A function that is given by name, and what else is set below the same key, belong together: ``reward=exact
    reward.timeout=60``, in either order.
    """
    for depth, segment in enumerate(path[:-1], start=1):
        inner = values.get(segment)
        if isinstance(inner, str) and _BY_NAME.match(".".join(path[:depth])):
            inner = values[segment] = {inner: {}}
        elif isinstance(inner, list) and _BY_NAME.match(".".join(path[:depth])):
            inner = values[segment] = _only(inner, path)
        elif not isinstance(inner, dict):
            inner = values[segment] = {}
        values = inner
    before = values.get(path[-1])
    if isinstance(value, str) and isinstance(before, dict) and _BY_NAME.match(".".join(path)):
        value = {value: {}, **before}
    values[path[-1]] = value


def _only(rewards: list[Yaml], path: tuple[str, ...]) -> dict[str, Yaml]:
    """The only reward of a list, as a mapping that takes more keys."""
    only = rewards[0] if len(rewards) == 1 else None
    if isinstance(only, str):
        return {only: {}}
    if isinstance(only, dict):
        return only
    raise ConfigError(
        f"command line: {'.'.join(path)}: it belongs to one reward, and there are {len(rewards)}; write it "
        f"beside its `fn` in the list"
    )


def _split(key: str) -> tuple[str, ...]:
    if match := _USER_FUNCTION.match(key):
        section, function, rest = match.groups()
        return (*section.split("."), function, *(rest.split(".") if rest else ()))
    return tuple(key.split("."))

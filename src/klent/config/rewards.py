"""What a recipe's ``reward:`` says, in one shape."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klent.errors import ConfigError

#: rewards that look at completions alone, never at an answer
WITHOUT_ANSWER = ("empo", "random")
BUILTIN = ("empo", "exact", "gym", "last_number", "math_verify", "random")
_KEYS = ("fn", "weight", "timeout", "settings")


@dataclass(frozen=True)
class RewardSpec:
    """One reward: which function, how much it counts, how long it may take.

    Attributes:
        fn: a built-in name, ``/path/to/file.py:function`` or ``package.module:function``.
        weight: its factor in the sum, any finite number; a reward of weight 0 is measured and not summed.
        timeout: seconds that one call may take, greater than 0.
        settings: more arguments of the function, the same at every call.
    """

    fn: str
    weight: float = 1.0
    timeout: float = 10.0
    settings: Mapping[str, Any] = field(default_factory=dict)


def parse_rewards(value: Any, base: Path) -> tuple[RewardSpec, ...]:
    """The rewards that a recipe asks for.

    Args:
        value: ``name``, ``{name: weight}``, ``{name: {setting: value}}``, or a list of names and ``{fn,
            weight, timeout, settings}``.
        base: folder from which a relative ``file.py`` is looked up.

    Returns:
        One spec a reward, in order, files as absolute paths. Nothing is imported and no file is opened.

    Raises:
        ConfigError: an unknown name or key, a weight or limit out of range, the same reward twice, or no
            reward with a weight other than 0.

    Examples:
        >>> parse_rewards("exact", Path("."))
        (RewardSpec(fn='exact', weight=1.0, timeout=10.0, settings={}),)
        >>> [(r.fn, r.weight) for r in parse_rewards({"exact": 1, "last_number": 0.5}, Path("."))]
        [('exact', 1.0), ('last_number', 0.5)]
    """
    if isinstance(value, str):
        items: list[Any] = [value]
    elif isinstance(value, Mapping):
        items = [value] if "fn" in value else [by_name(name, given) for name, given in value.items()]
    elif isinstance(value, list | tuple):
        items = list(value)
    else:
        raise ConfigError(f"reward: expected a name, a mapping or a list, not {_shown(value)}")
    specs = tuple(_spec(item, base) for item in items)
    if not specs:
        raise ConfigError("reward: nothing to score with; name at least one reward, such as `reward: exact`")
    for index, spec in enumerate(specs):
        if spec.fn in {other.fn for other in specs[:index]}:
            raise ConfigError(f"reward: {spec.fn} is there twice; keep one and give it the summed weight")
    if all(spec.weight == 0 for spec in specs):
        raise ConfigError("reward: every weight is 0, so nothing would be learnt; give one reward a weight")
    return specs


def by_name(name: str, given: Any) -> dict[str, Any]:
    """One entry of a mapping of rewards in full: what is given is its settings, or a number, its weight."""
    return {"fn": name, "settings" if isinstance(given, Mapping) else "weight": given}


def _spec(item: Any, base: Path) -> RewardSpec:
    fields = {"fn": item} if isinstance(item, str) else item
    if not isinstance(fields, Mapping):
        raise ConfigError(f"reward: expected a name or {{fn, weight, timeout, settings}}, not {_shown(item)}")
    for key in fields:
        if key not in _KEYS:
            hint = nearest(str(key), _KEYS)
            raise ConfigError(f"reward: unknown key {key!r}{hint}; keys are {', '.join(_KEYS)}")
    if not isinstance(fields.get("fn"), str):
        raise ConfigError(f"reward: `fn` must name a function, not {_shown(fields.get('fn'))}")
    fn = _resolved(fields["fn"].strip(), base)
    weight = _number(fields.get("weight", 1.0), f"reward {fn}: weight")
    timeout = _number(fields.get("timeout", 10.0), f"reward {fn}: timeout")
    if timeout <= 0:
        raise ConfigError(f"reward {fn}: timeout must be more than 0 seconds, not {timeout:g}")
    settings = fields.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"reward {fn}: settings must be a mapping of arguments, not {_shown(settings)}")
    return RewardSpec(fn, weight, timeout, dict(settings))


def _resolved(fn: str, base: Path) -> str:
    if ":" not in fn:
        if fn.endswith(".py"):
            raise ConfigError(f"reward: {fn} names a file and no function; write {fn}:FUNCTION")
        if fn not in BUILTIN:
            raise ConfigError(
                f"reward: unknown name {fn!r}{nearest(fn, BUILTIN)}; built-in are {', '.join(BUILTIN)}; "
                "your own is path/to/file.py:function or package.module:function"
            )
        return fn
    place, _, function = fn.rpartition(":")
    if not place or not function.isidentifier():
        raise ConfigError(f"reward: {fn!r} should read path/to/file.py:function or package.module:function")
    if place.endswith(".py"):
        return f"{(base / Path(place).expanduser()).resolve()}:{function}"
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(f"reward: {place!r} is no .py file and no module; write path/to/file.py:{function}")
    return fn


def short_names(specs: tuple[RewardSpec, ...]) -> list[str]:
    """A name for each reward in the metrics: the function's, with its file's where that is not enough."""
    taken = {"mean", "std", "unscorable"}  # these metrics exist already
    names = []
    for spec in specs:
        place, _, function = spec.fn.rpartition(":")
        stem = Path(place).stem if place.endswith(".py") else place
        options = [function, f"{stem}.{function}", spec.fn]
        name = next((option for option in options if option not in taken), spec.fn)
        taken.add(name)
        names.append(name)
    return names


def nearest(word: str, known: Any) -> str:
    """A hint that ends a message: `` (did you mean 'x'?)``, or nothing where no name is near."""
    matches = difflib.get_close_matches(word, [str(name) for name in known], n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(match) for match in matches)}?)" if matches else ""


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{what} must be a finite number, not {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"

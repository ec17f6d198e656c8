"""Rewards that are Python functions: their names in a recipe, and how they reach the process that calls them.

A function is sent with cloudpickle, together with what it refers to; this works for closures, lambdas,
methods of objects and functions defined in a notebook. It goes through an anonymous file that only this user
can read, never through the run folder.

Security: unpickling runs code. This is the only pickle in klent, it is of the user's own function, and it is
read in the user's own process and nowhere else.
"""

import functools
import importlib.machinery
import io
import json
import keyword
import os
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from types import CodeType, ModuleType
from typing import TypeAlias

from klent.config.rewards import PYTHON, Reward
from klent.errors import ConfigError

Function: TypeAlias = Callable[..., object]


def name_functions(value: object, functions: dict[str, Function]) -> object:
    """A recipe's ``reward`` with every function in it replaced by a name, ``python:NAME``.

    Args:
        value: as of :func:`klent.config.rewards.parse_rewards`, with functions wherever a name may stand.
        functions: receives each function under its NAME.

    Examples:
        >>> functions = {}
        >>> name_functions([len, {"fn": lambda completions: completions, "weight": 2.0}], functions)
        ['python:len', {'fn': 'python:lambda_', 'weight': 2.0}]
        >>> list(functions)
        ['len', 'lambda_']
    """
    if callable(value):
        return f"{PYTHON}:{_add(value, functions)}"
    if isinstance(value, list | tuple):
        return [name_functions(item, functions) for item in value]
    if isinstance(value, Mapping) and "fn" in value:
        return {**value, "fn": name_functions(value["fn"], functions)}
    if isinstance(value, Mapping):
        return {name_functions(key, functions): item for key, item in value.items()}
    return value


def name_rewards(values: Mapping[str, object], functions: dict[str, Function]) -> dict[str, object]:
    """A recipe's keys, nested or dotted, with the functions in ``reward`` and ``eval.reward`` named."""
    named = dict(values)
    for key in ("reward", "eval.reward"):
        if key in named:
            named[key] = name_functions(named[key], functions)
    evaluation = named.get("eval")
    if isinstance(evaluation, Mapping) and "reward" in evaluation:
        named["eval"] = {**evaluation, "reward": name_functions(evaluation["reward"], functions)}
    return named


def pack(function: Function, name: str) -> bytes:
    """What :func:`klent.tasks.worker.unpack` needs to have the function in another process.

    Raises:
        ConfigError: it refers to something that cannot leave this process, such as a lock or an open file.
    """
    import cloudpickle

    module = sys.modules.get(getattr(_inner(function), "__module__", None) or "")
    by_value = module is not None and hasattr(module, "__file__") and not _can_import(module)
    try:
        if by_value:
            cloudpickle.register_pickle_by_value(module)
        pickled = _dumps(function)
    except Exception as error:  # anything that an object's own __reduce__ may raise
        raise ConfigError(
            f"reward {PYTHON}:{name}: it runs in a process of its own and cannot be copied there: {error}. Create "
            "what it refers to inside the function, or write path/to/file.py:function"
        ) from error
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    paths = [os.path.abspath(path) for path in sys.path]
    return json.dumps(paths).encode() + b"\n" + pickled


def missing(reward: Reward) -> ConfigError:
    """The error of a reward whose function was not given to this process."""
    return ConfigError(
        f"reward {reward.fn}: it is a Python function, which a recipe or run folder names and does not hold. "
        f"Give it again: klent.train(RECIPE, reward={reward.python_name}), with resume=True to continue a run"
    )


def _dumps(function: Function) -> bytes:
    """``cloudpickle.dumps``, with code that remembers its file, which cloudpickle replaces by a constant."""
    import cloudpickle

    table = cloudpickle.CloudPickler.dispatch_table

    def reduce_code(code: CodeType) -> tuple[object, tuple[object, ...]]:
        make, arguments = table[CodeType](code)
        return make, tuple(code.co_filename if item == "<dynamic-code>" else item for item in arguments)

    class Pickler(cloudpickle.CloudPickler):
        dispatch_table = ChainMap({CodeType: reduce_code}, table)  # noqa: RUF012

    with io.BytesIO() as file:
        Pickler(file).dump(function)
        return file.getvalue()


def _add(function: Function, functions: dict[str, Function]) -> str:
    """The name under which ``functions`` has the function; it is added if it is new."""
    for name, other in functions.items():
        if other is function:
            return name
    inner = _inner(function)
    stem = re.sub(r"\W", "", getattr(inner, "__name__", type(inner).__name__)) or "reward"
    stem = f"{stem}_" if keyword.iskeyword(stem) else stem
    name, number = stem, 2
    while name in functions:
        name, number = f"{stem}_{number}", number + 1
    functions[name] = function
    return name


def _inner(function: object) -> object:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _can_import(module: ModuleType) -> bool:
    """Whether another process finds the module by its name; not so where a file was loaded by its path."""
    path: list[str] | None = None
    spec = None
    parts = module.__name__.split(".")
    for depth in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), path)
        if spec is None:
            return False
        path = list(spec.submodule_search_locations or [])
    return spec is not None and spec.origin == module.__file__

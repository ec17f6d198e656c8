"""The other side of the pipe, ``python -m klent.tasks.worker``: it loads one function and calls it.

Every line that it writes is a JSON object, a :class:`Reply`. The first has the function's parameters; each
later one answers a line that it read, the arguments of one call by name. The function may print, read its
input, exit or crash: the pipe is out of its reach.

This module imports the standard library and little else, since every reward waits for it.
"""

import asyncio
import fcntl
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import select
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO, TypeAlias, TypedDict

from klent.errors import ConfigError, KlentError
from klent.kit.names import nearest

Function: TypeAlias = Callable[..., object]


class Parameters(TypedDict):
    """The arguments that a function must have, and those that it takes by name."""

    required: list[str]
    named: list[str]


class Failure(TypedDict):
    """An exception: its type, a message that names the user's own line, and where that line is."""

    kind: str
    text: str
    file: str
    line: int


class Reply(TypedDict, total=False):
    """One line from the process: parameters, or a value and what was logged, or what was raised."""

    parameters: Parameters
    value: object
    metrics: dict[str, float]
    error: Failure


# TRL passes these to every reward. They are passed where a function asks for them, and do nothing here, but
# for log_metric(name, value): what it receives is sent back with the values.
_TRL_ONLY: dict[str, object] = {
    "completion_ids": None,
    "trainer_state": None,
    "log_extra": lambda *args, **kwargs: None,
    "log_metric": lambda *args, **kwargs: None,
}


def main() -> None:
    """Serve the function named on the command line until standard input ends."""
    target, lifeline, *packed = sys.argv[1:]
    _die_with_parent(int(lifeline))
    requests, replies = _take_pipes()
    try:
        function = unpack(int(packed[0])) if packed else load(target)
        first: Reply = {"parameters": describe(function)}
    except BaseException as error:
        _write(replies, json.dumps({"error": _failure(error)}))
        return
    _write(replies, json.dumps(first))
    for line in requests:
        try:
            metrics: dict[str, float] = {}
            value = call(function, json.loads(line), metrics)
            reply = json.dumps({"value": value, "metrics": metrics}, default=_plain)
        except BaseException as error:  # a function that calls sys.exit() ends itself, not this process
            reply = json.dumps({"error": _failure(error)})
        _write(replies, reply)


def unpack(descriptor: int) -> Function:
    """The function that :func:`klent.tasks.callables.pack` packed, from an open file."""
    with os.fdopen(descriptor, "rb") as file:
        paths = json.loads(file.readline())
        sys.path += [path for path in paths if path not in sys.path]
        try:
            function: Function = pickle.load(file)
        except BaseException as error:
            raise ConfigError(f"its process cannot import what it refers to: {_line(error)}") from error
    return function


def load(target: str) -> Function:
    """The function ``/path/file.py:function`` or ``package.module:function``."""
    source, _, name = target.rpartition(":")
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise ConfigError(f"there is no file {source}")
    try:
        module = _import_file(Path(source)) if is_file else _import_module(source)
    except KlentError:
        raise
    except BaseException as error:
        raise ConfigError(f"importing {source} failed: {_line(error)}") from error
    function: object = getattr(module, name, None)
    if function is None:
        names = [
            key
            for key, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__ and not key.startswith("_")
        ]
        listed = f"; it has {', '.join(names[:8])}" if names else ""
        raise ConfigError(f"{source} has no function {name!r}{nearest(name, names)}{listed}")
    if not callable(function):
        raise ConfigError(f"{name!r} in {source} is of type {type(function).__name__}, not a function")
    return function


def describe(function: Function) -> Parameters:
    """Which arguments a function must have, and which it takes by name."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        "required": [p.name for p in named if p.default is p.empty and p.name not in _TRL_ONLY],
        "named": [p.name for p in named],
    }


def call(function: Function, arguments: Mapping[str, object], metrics: dict[str, float]) -> object:
    """Call with those ``arguments`` that the function takes, await a coroutine; it may fill ``metrics``."""
    parameters = inspect.signature(function).parameters
    taken = dict(arguments)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        taken = {name: value for name, value in taken.items() if name in parameters}
    for name, value in _TRL_ONLY.items():
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            taken[name] = value
    if "log_metric" in parameters:
        taken["log_metric"] = lambda name, value: metrics.__setitem__(str(name), float(value))
    result = function(**taken)
    return asyncio.run(_await(result)) if inspect.isawaitable(result) else result


async def _await(value: Awaitable[object]) -> object:
    return await value


def _import_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.parent))  # a reward file may import its neighbours, as a script may
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _plain(value: object) -> object:
    """Arrays, tensors and their scalars as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"returned {type(value).__name__}, which is neither a list nor a number")


def _failure(error: BaseException) -> Failure:
    file, line = _place(error)
    if isinstance(error, SystemExit):
        text = f"called sys.exit({error.code!r})"
    elif isinstance(error, KlentError):
        text = str(error)
    else:
        text = f"raised {_line(error)}"
    return {"kind": type(error).__name__, "text": text, "file": file, "line": line}


def _line(error: BaseException) -> str:
    """An exception as Python's last line has it, with the file and line of the user's own code."""
    lines = traceback.format_exception_only(error)
    text = " ".join(next(line for line in lines if not line.startswith(" ")).split())[:300]
    file, line = _place(error)
    return f"{text} ({Path(file).name}, line {line})" if file else text


def _place(error: BaseException) -> tuple[str, int]:
    """The last file and line in the traceback that belong to the user's code; ``("", 0)`` without any."""
    if isinstance(error, SyntaxError):
        places = [(error.filename or "", error.lineno or 0)]
    else:
        places = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    libraries = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
    skipped = (*libraries, str(Path(__file__).parent), "<frozen")
    return next((place for place in reversed(places) if not place[0].startswith(skipped)), ("", 0))


def _write(replies: TextIO, line: str) -> None:
    with suppress(Exception):  # what the function printed; it may have closed or replaced these
        sys.stdout.flush()
        sys.stderr.flush()
    replies.write(line + "\n")
    replies.flush()


def _take_pipes() -> tuple[TextIO, TextIO]:
    """Move the protocol off file descriptors 0 and 1, which then read nothing and write to standard error."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _die_with_parent(lifeline: int) -> None:
    """End this process and its children when the other end of ``lifeline`` closes, whatever they are doing.

    On Linux the kernel then sends SIGIO to the process group, so that no Python code has to run: even a
    regular expression that never returns cannot delay it. Elsewhere a thread waits for the end of the pipe.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        watch = select.poll()
        watch.register(lifeline, select.POLLIN)
        if watch.poll(0):  # it closed before the signal was set up
            os._exit(1)
    else:
        threading.Thread(target=_wait_for_end, args=(lifeline,), daemon=True).start()


def _wait_for_end(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()

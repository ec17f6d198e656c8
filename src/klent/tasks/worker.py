"""The other side of the pipe, ``python -m klent.tasks.worker``: it loads one function and calls it.

Every line that it writes is a JSON object, ``{"ok": value}`` or ``{"error": {"kind", "text"}}``. The first
tells the function's parameters; a later one answers a line that it read, the arguments of one call by name.
The function may print, read its input, exit or crash: the pipe is out of its reach.
"""

import asyncio
import fcntl
import importlib
import importlib.util
import inspect
import json
import os
import select
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from klent.config.rewards import BUILTIN, WITHOUT_ANSWER, nearest
from klent.errors import ConfigError, KlentError

# TRL hands these to every reward. They are passed where a function asks for them, and do nothing here, but
# for log_metric(name, value): what it is told goes back with the values.
_TRL_ONLY: dict[str, Any] = {
    "completion_ids": None,
    "trainer_state": None,
    "log_extra": lambda *args, **kwargs: None,
    "log_metric": lambda *args, **kwargs: None,
}


def main() -> None:
    """Serve the function named on the command line until standard input ends."""
    lifeline, target = sys.argv[1:]
    _die_with_parent(int(lifeline))
    requests, replies = _take_pipes()
    try:
        function = load(target)
        first = {"ok": describe(function)}
    except BaseException as error:
        _write(replies, json.dumps({"error": _error(error)}))
        return
    _write(replies, json.dumps(first))
    for line in requests:
        try:
            metrics: dict[str, float] = {}
            value = call(function, json.loads(line), metrics)
            reply = json.dumps({"ok": value, "metrics": metrics}, default=_plain)
        except BaseException as error:  # a function that calls sys.exit() ends itself, not this process
            reply = json.dumps({"error": _error(error)})
        _write(replies, reply)


def load(target: str) -> Callable[..., Any]:
    """The function named ``builtin``, ``/path/file.py:function`` or ``package.module:function``."""
    if target in BUILTIN:
        home = "agreement" if target in WITHOUT_ANSWER else "verifiers"
        return getattr(importlib.import_module(f"klent.tasks.{home}"), target)
    place, _, name = target.rpartition(":")
    is_file = place.endswith(".py")
    if is_file and not Path(place).is_file():
        raise ConfigError(f"there is no file {place}")
    try:
        module = _import_file(Path(place)) if is_file else _import_module(place)
    except KlentError:
        raise
    except BaseException as error:
        raise ConfigError(f"importing {place} failed: {_line(error)}") from error
    function = getattr(module, name, None)
    if function is None:
        mine = [
            key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__
        ]
        own = [key for key in mine if not key.startswith("_")]
        listed = f"; it has {', '.join(own[:8])}" if own else ""
        raise ConfigError(f"{place} has no function {name!r}{nearest(name, own)}{listed}")
    if not callable(function):
        raise ConfigError(f"{name!r} in {place} is a {type(function).__name__}, not a function")
    return function


def describe(function: Callable[..., Any]) -> dict[str, Any]:
    """Which arguments a function must have, and which it takes."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        "required": [p.name for p in named if p.default is p.empty and p.name not in _TRL_ONLY],
        "named": [p.name for p in named],
        "any": any(p.kind is p.VAR_KEYWORD for p in parameters),
    }


def call(function: Callable[..., Any], given: dict[str, Any], metrics: dict[str, float]) -> Any:
    """Call with what the function takes of ``given``; a coroutine is awaited. It may fill ``metrics``."""
    parameters = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    for name, value in _TRL_ONLY.items():
        if name in parameters and parameters[name].default is inspect.Parameter.empty:
            given[name] = value
    if "log_metric" in parameters:
        given["log_metric"] = lambda name, value: metrics.__setitem__(str(name), float(value))
    result = function(**given)
    return asyncio.run(_await(result)) if inspect.isawaitable(result) else result


async def _await(value: Any) -> Any:
    return await value


def _import_file(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))  # so that a reward file finds its neighbours, as a script would
    spec = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> Any:
    sys.path.append(os.getcwd())
    return importlib.import_module(name)


def _plain(value: Any) -> Any:
    """Arrays, tensors and their scalars as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"returned {type(value).__name__}, which is neither a list nor a number")


def _error(error: BaseException) -> dict[str, str]:
    if isinstance(error, SystemExit):
        return {"kind": "SystemExit", "text": f"called sys.exit({error.code!r})"}
    if isinstance(error, KlentError):
        return {"kind": type(error).__name__, "text": str(error)}
    return {"kind": type(error).__name__, "text": f"raised {_line(error)}"}


def _line(error: BaseException) -> str:
    """An exception as Python's last line has it, with the place in the user's own code that led to it."""
    lines = traceback.format_exception_only(error)
    text = " ".join(next(line for line in lines if not line.startswith(" ")).split())[:300]
    if isinstance(error, SyntaxError):
        places = [(error.filename or "", error.lineno)]
    else:
        places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    libraries = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
    skipped = (*libraries, str(Path(__file__).parent), "<frozen")
    own = [(Path(name).name, line) for name, line in places if not name.startswith(skipped)]
    return f"{text} ({own[-1][0]}, line {own[-1][1]})" if own else text


def _write(replies: Any, line: str) -> None:
    with suppress(Exception):  # what the function printed; it may have closed or replaced these
        sys.stdout.flush()
        sys.stderr.flush()
    replies.write(line + "\n")
    replies.flush()


def _take_pipes() -> tuple[Any, Any]:
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

    On Linux the kernel then sends SIGIO to the process group, and no Python code of ours need run: a regular
    expression that never returns cannot put it off. Elsewhere a thread waits for the end of the pipe.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
        watch = select.poll()
        watch.register(lifeline, select.POLLIN)
        if watch.poll(0):  # it had closed before we listened
            os._exit(1)
    else:
        threading.Thread(target=_wait_for_end, args=(lifeline,), daemon=True).start()


def _wait_for_end(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()

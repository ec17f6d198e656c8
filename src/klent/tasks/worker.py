"""The other side of the pipe, ``python -m klent.tasks.worker``: it loads one function and calls it.

Every line that it writes is a JSON object, a :class:`Reply`. The first has the function's parameters; each
later one answers a :class:`Request` that it read, and has its id. The function may print, read its input,
exit, fork or crash: the pipe is out of its reach, and out of that of its children. It finds here what a
script finds: one event loop from the first call to the last, and children that can import its file.
A supervisor above it (:mod:`klent.tasks.supervisor`) ends it, and what it started.

This module imports the standard library and little else, since every reward waits for it.
"""

import asyncio
import faulthandler
import functools
import inspect
import json
import os
import pickle
import resource
import sys
import traceback
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO, TypedDict

from klent.errors import ConfigError, KlentError
from klent.kit.own_code import Function, last_line, load, place_of
from klent.tasks.supervisor import STACK_SIGNAL, supervise


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


class Request(TypedDict):
    """One line to the process: a call's arguments by name. Ids count up from 1."""

    id: int
    arguments: dict[str, object]


class Reply(TypedDict, total=False):
    """One line from the process: parameters, or a value and what was logged, or what was raised.

    ``id`` is that of the request; parameters, which nobody asked for, have 0.
    """

    id: int
    parameters: Parameters
    value: object
    metrics: dict[str, float]
    error: Failure


# TRL passes these to every reward. They are passed where a function asks for them, and do nothing here, but
# for log_metric(name, value): what it receives is sent back with the values.
_TRL_ONLY: dict[str, object] = {
    "log_extra": lambda *args, **kwargs: None,
    "log_metric": lambda *args, **kwargs: None,
}


# Created before the function's module is imported, so that what is made there (a semaphore, an HTTP client)
# and every call meet in one loop. The process that only imports this module never has it.
_LOOP = asyncio.Runner()


def main() -> None:
    """Serve the function named on the command line until standard input ends."""
    target, memory, *given = sys.argv[1:]
    lifeline, stack, *packed = map(int, given)
    supervise(lifeline, [stack, *packed])
    _show_stack(stack)
    _limit_memory(int(memory))
    requests, replies = _take_pipes()
    _LOOP.get_loop()  # creates it, and makes it the current one
    try:
        with _end_forks():
            function = unpack(packed[0]) if packed else load(target, as_script=True)
        first: Reply = {"id": 0, "parameters": describe(function)}
    except BaseException as error:
        _write(replies, json.dumps({"id": 0, "error": _failure(error)}))
        return
    _write(replies, json.dumps(first))
    for line in requests:
        request: Request = json.loads(line)
        try:
            metrics: dict[str, float] = {}
            with _end_forks():
                value = call(function, request["arguments"], metrics)
                answer = json.dumps({"id": request["id"], "value": value, "metrics": metrics}, default=_plain)
        except BaseException as error:  # a function that calls sys.exit() ends itself, not this process
            answer = json.dumps({"id": request["id"], "error": _failure(error)})
        _write(replies, answer)


def unpack(descriptor: int) -> Function:
    """The function that :func:`klent.tasks.callables.pack` packed, from an open file."""
    with os.fdopen(descriptor, "rb") as file:
        paths = json.loads(file.readline())
        sys.path += [path for path in paths if path not in sys.path]
        try:
            function: Function = pickle.load(file)
        except BaseException as error:
            raise ConfigError(f"its process cannot import what it refers to: {last_line(error)}") from error
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
    return _LOOP.run(_await(result)) if inspect.isawaitable(result) else result


async def _await(value: Awaitable[object]) -> object:
    with _end_forks():  # here already: a child must not go on in the loop that it shares with this process
        return await value


@contextmanager
def _end_forks() -> Iterator[None]:
    """End a child process that the block forked and that comes out of it, with the status that it would have
    as a child of a script. It must not answer for this process, nor read what is meant for it."""
    home = os.getpid()
    try:
        yield
    except BaseException as error:
        if os.getpid() != home:
            _end_fork(error)
        raise
    if os.getpid() != home:
        _end_fork(None)


def _end_fork(error: BaseException | None) -> NoReturn:
    status = 0 if error is None else 1
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = (error.code or 0) & 0xFF
    elif error is not None:
        with suppress(Exception):
            traceback.print_exception(error)
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(status)


def _plain(value: object) -> object:
    """Arrays, tensors and their scalars as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"returned {type(value).__name__}; return a list with a number for each completion")


def _failure(error: BaseException) -> Failure:
    file, line = place_of(error)
    if isinstance(error, SystemExit):
        text = f"called sys.exit({error.code!r})"[:300]
    elif isinstance(error, KlentError):
        text = str(error)
    else:
        text = f"raised {last_line(error)}"
    return {"kind": type(error).__name__, "text": text, "file": file, "line": line}


def _write(replies: TextIO, line: str) -> None:
    with suppress(Exception):  # what the function printed; it may have closed or replaced these
        sys.stdout.flush()
        sys.stderr.flush()
    replies.write(line + "\n")
    replies.flush()


def _take_pipes() -> tuple[TextIO, TextIO]:
    """Move the protocol off file descriptors 0 and 1, which then read nothing and write to standard error.

    Children get null devices in its place: one that lives on must not hold the pipes open, or write to them.
    """
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    os.register_at_fork(after_in_child=functools.partial(_disconnect, requests.fileno(), replies.fileno()))
    return requests, replies


def _disconnect(*descriptors: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _show_stack(descriptor: int) -> None:
    """Write this process's Python stack to a file whenever it is asked, also while it hangs or loads in C."""
    os.set_inheritable(descriptor, False)
    faulthandler.register(STACK_SIGNAL, file=descriptor, all_threads=True)


def _limit_memory(size: int) -> None:
    """Refuse allocations beyond ``size`` bytes, here and in each child; 0 = no limit.

    What counts is private memory that can be written. Libraries and files that are mapped to be read, and
    addresses that are only reserved, do not: a limit of 1 GB lets torch be imported.
    """
    if size:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


if __name__ == "__main__":
    main()

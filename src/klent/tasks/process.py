"""A function in another process, called with a time limit."""

import json
import linecache
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from klent.tasks.worker import Failure, Parameters, Reply

START_SECONDS = 180.0  # for Python and the function's own imports; a call's limit does not include them


class CallFailed(Exception):
    """A call that brought no value: the function raised, ran into its limit, or its process died.

    ``error`` is the exception's type where it raised.
    """

    def __init__(self, kind: Literal["raised", "timeout", "died"], text: str, error: str = "") -> None:
        super().__init__(text)
        self.kind = kind
        self.error = error


class Worker:
    """One function in a process of its own, started when it is first needed and again after it was ended.

    The process leads its own session, so that Ctrl-C in the terminal does not reach it. It ends with this
    object, with this process (even one that is killed), or when a call runs past its limit. Hash seeds and
    thread counts are fixed, so that a call's value depends on its arguments alone.

    Args:
        target: ``/path/file.py:function``, ``package.module:function``, or a name for what is ``packed``.
        log: file that receives what the function prints; None = this process's standard error.
        packed: the function itself, from :func:`klent.tasks.callables.pack`; None = ``target`` is imported.
    """

    def __init__(self, target: str, log: Path | None = None, packed: bytes | None = None) -> None:
        self.target = target
        self._log = log
        self._packed = packed
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None
        self._buffer = b""
        self._parameters: Parameters | None = None
        self._retired = False
        self.metrics: dict[str, float] = {}

    def launch(self) -> None:
        """Start the process and let it import, without waiting."""
        if self._process is not None:
            return
        if self._retired:
            raise CallFailed("died", "was closed")
        lifeline, our_end = (
            os.pipe()
        )  # nothing is ever written; its closing tells the process that we are gone
        try:
            with _anonymous_file(self._packed) as packed, _opened(self._log) as log:
                descriptors = [lifeline, *([packed.fileno()] if packed else [])]
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "klent.tasks.worker", self.target, *map(str, descriptors)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    pass_fds=descriptors,
                    env=_environment(),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(our_end)
            raise CallFailed("died", f"could not be started: {error}") from None
        finally:
            os.close(lifeline)
        self._end = weakref.finalize(self, _end_process, self._process, our_end)
        self._buffer = b""
        self._parameters = None
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def parameters(self) -> Parameters:
        """The function's parameters; waits until the process has imported it.

        Raises:
            CallFailed: it could not be imported.
        """
        self.launch()
        if self._parameters is None:
            try:
                self._parameters = self._receive(time.monotonic() + START_SECONDS)["parameters"]
            except CallFailed as error:
                self.close()
                late = f"did not finish its imports in {START_SECONDS:g} s"
                raise (CallFailed("timeout", late) if error.kind == "timeout" else error) from None
        return self._parameters

    def call(self, arguments: Mapping[str, object], timeout: float) -> object:
        """Call the function by keyword and return its value; ``metrics`` holds what it logged, by name.

        Args:
            arguments: JSON-able values by name; those that the function does not take are left out.
            timeout: seconds allowed, not counting the process's start.

        Raises:
            CallFailed: no value came; the process is ended and starts anew at the next call, unless the
                function merely raised.
        """
        self.parameters()
        deadline = time.monotonic() + timeout
        try:
            self._send(arguments, deadline)
            reply = self._receive(deadline)
        except CallFailed as error:
            if error.kind == "timeout":
                self.close()
                raise CallFailed("timeout", f"took longer than its limit of {timeout:g} s") from None
            raise
        self.metrics = reply["metrics"]
        return reply["value"]

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._end is not None:
            self._end()
        self._process = self._end = self._parameters = None

    def retire(self) -> None:
        """End the process for good: a later call fails."""
        self._retired = True
        self.close()

    def _send(self, request: Mapping[str, object], deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        data = memoryview(json.dumps(request).encode() + b"\n")
        while data:
            if not _ready(pipe, select.POLLOUT, deadline):
                raise CallFailed("timeout", "did not read its input")
            try:
                data = data[os.write(pipe, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._died() from None

    def _receive(self, deadline: float) -> Reply:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not _ready(pipe, select.POLLIN, deadline):
                raise CallFailed("timeout", "did not answer")
            chunk = os.read(pipe, 1 << 20)
            if not chunk:
                raise self._died()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply: Reply = json.loads(line)
        except ValueError:
            self.close()
            raise CallFailed("died", "its process wrote something other than a reply to its pipe") from None
        if (failure := reply.get("error")) is not None:
            source = "" if self._packed is None else _source_line(failure)
            raise CallFailed("raised", f"{failure['text']}{source}", failure["kind"])
        return reply

    def _died(self) -> CallFailed:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            cause = "closed its pipe"
        else:
            names = {number.value: number.name for number in signal.Signals}
            killer = names.get(-code, f"signal {-code}")
            cause = f"exited with code {code}" if code >= 0 else f"was killed by {killer}"
        self.close()
        return CallFailed("died", f"its process {cause}")


def _environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextmanager
def _anonymous_file(content: bytes | None) -> Iterator[IO[bytes] | None]:
    """A file without a name, which only this user can read, to be read from its start; None for None."""
    if content is None:
        yield None
        return
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        yield file


@contextmanager
def _opened(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    with open(log, "ab") as file:
        yield file


def _source_line(failure: Failure) -> str:
    """The line of source that raised, which this process knows even where it was typed into a notebook."""
    line = linecache.getline(failure["file"], failure["line"]).strip()
    return f": `{line}`" if line else ""


def _ready(pipe: int, event: int, deadline: float) -> bool:
    poll = select.poll()  # not select(), which refuses file descriptors from 1024 on
    poll.register(pipe, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _end_process(process: subprocess.Popen[bytes], our_end: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    os.close(our_end)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
    process.wait()

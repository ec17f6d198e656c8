"""A function in another process, called with a time limit."""

import json
import linecache
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from klent.tasks.replies import read_reply
from klent.tasks.worker import Failure, Parameters, Reply, Request

START_SECONDS = (
    180.0  # for Python and the function's imports; those within a call get as much on top of its limit
)
LOG_BYTES = 16 << 20  # of what a function prints; of a longer log the newest quarter is kept
_REPLY_BYTES = 64 << 20  # many times what the values of a batch take
_TEXT = 1000  # characters of an error; the worker shortens what it quotes, and is not relied upon
_LOOK = 1.0  # seconds between two looks at the log's size while a call runs
_WARM_UP = 4  # times what a first call has taken is what the first call of another process may take
_IMPORTS = b"<frozen importlib._bootstrap>"  # a frame of every import that goes on
_END_SECONDS = 10.0  # more than the supervisor takes
_CUTTING = threading.Lock()


class CallFailed(Exception):
    """A call that brought no value: the function raised, ran into its limit, or its process died.

    Args:
        kind: which of them.
        text: for the user.
        error: the exception's type where it raised.
        place: where and how it failed, without what the text quotes: the same for every such failure.
    """

    def __init__(
        self, kind: Literal["raised", "timeout", "died"], text: str, error: str = "", place: str = ""
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.error = error
        self.place = place or text


class Worker:
    """One function in a process of its own, started when it is first needed and again after it was ended.

    The process leads its own session, so that Ctrl-C in the terminal does not reach it. It ends with this
    object, with this process (even one that is killed), or when a call runs past its limit, and whatever it
    started ends with it. Hash seeds and thread counts are fixed, so that a call's value depends on its
    arguments alone.

    Args:
        target: ``/path/file.py:function``, ``package.module:function``, or a name for what is ``packed``.
        log: file that receives what the function prints; None = this process's standard error.
        packed: the function itself, from :func:`klent.tasks.callables.pack`; None = ``target`` is imported.
        memory_gb: limit of the process's memory, and of each of its children's; None = no limit.

    Attributes:
        metrics: what the last call logged, by name.
        seconds: what the last call that brought a value took.
        warm: whether its process had answered a call before.
    """

    def __init__(
        self,
        target: str,
        log: Path | None = None,
        packed: bytes | None = None,
        memory_gb: float | None = None,
    ) -> None:
        self.target = target
        self._log = log
        self._packed = packed
        self._memory_gb = memory_gb
        self._stack: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] | None = None
        self._buffer = bytearray()
        self._calls = 0
        self._parameters: Parameters | None = None
        self._retired = False
        self._answered = False  # a call, since the process was started
        self._first = 0.0  # seconds of the longest first call of a process
        self.metrics: dict[str, float] = {}
        self.seconds = 0.0
        self.warm = False

    def launch(self) -> None:
        """Start the process and let it import, without waiting."""
        if self._process is not None:
            return
        if self._retired:
            raise CallFailed("died", "was closed")
        lifeline, our_end = (
            os.pipe()
        )  # nothing is ever written; its closing tells the process that we are gone
        self._bound_log()
        memory = 0 if self._memory_gb is None else round(self._memory_gb * 1e9)
        command = [sys.executable, "-P", "-m", "klent.tasks.worker", self.target, str(memory)]
        try:
            with _anonymous_file(self._packed) as packed, _opened(self._log) as log:
                self._stack = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
                descriptors = [lifeline, self._stack.fileno(), *([packed.fileno()] if packed else [])]
                self._process = subprocess.Popen(
                    [*command, *map(str, descriptors)],
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
        self._buffer.clear()
        self._parameters = None
        self._answered = False
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
                reply = self._receive(0, time.monotonic() + START_SECONDS)
                if "parameters" not in reply:
                    raise self._strange()
                self._parameters = reply["parameters"]
            except CallFailed as error:
                self.close()
                late = f"did not finish its imports in {START_SECONDS:g} s"
                raise (CallFailed("timeout", late) if error.kind == "timeout" else error) from None
        return self._parameters

    def call(self, arguments: Mapping[str, object], timeout: float) -> object:
        """Call the function by keyword and return its value; ``metrics`` holds what it logged, by name.

        Args:
            arguments: JSON-able values by name; those that the function does not take are left out.
            timeout: seconds allowed, not counting the process's start. It begins anew where it ends in the
                middle of an import. The first call of a process may also take 4 times what a first call took
                before: what it loads is loaded again.

        Raises:
            CallFailed: no value came; the process is ended and starts anew at the next call, unless the
                function merely raised.
        """
        self.parameters()
        self.warm = self._answered
        if not self.warm:
            timeout = max(timeout, _WARM_UP * self._first)
        start = time.monotonic()
        self._calls += 1
        try:
            self._send(_line({"id": self._calls, "arguments": dict(arguments)}), start + timeout)
            reply = self._answer(self._calls, start, timeout)
            if "value" not in reply:
                raise self._strange()
        except CallFailed as error:
            if error.kind == "timeout":
                self.close()
                late = f"took longer than its limit of {timeout:.4g} s"
                raise CallFailed("timeout", late, place="limit") from None
            raise
        self.metrics = reply["metrics"]
        self.seconds = time.monotonic() - start
        self._first = self._first if self.warm else max(self._first, self.seconds)
        self._answered = True
        return reply["value"]

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._end is not None:
            self._end()
        self._process = self._end = self._parameters = self._stack = None

    def retire(self) -> None:
        """End the process for good: a later call fails."""
        self._retired = True
        self.close()

    def _send(self, line: bytes, deadline: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe = self._process.stdin.fileno()
        data = memoryview(line)
        while data:
            if not self._ready(pipe, select.POLLOUT, deadline):
                raise CallFailed("timeout", "did not read its input")
            try:
                data = data[os.write(pipe, data) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._died() from None

    def _answer(self, id: int, start: float, timeout: float) -> Reply:
        """The reply to request ``id`` within its limit, which begins anew where the process is importing."""
        deadline, last = start + timeout, start + timeout + START_SECONDS
        while True:
            try:
                return self._receive(id, deadline)
            except CallFailed as error:
                if error.kind != "timeout" or deadline >= last or not self._is_importing():
                    raise
            deadline = min(time.monotonic() + timeout, last)

    def _is_importing(self) -> bool:
        """Whether the process imports something now, by its Python stack, which it shows on a signal."""
        assert self._process is not None
        assert self._stack is not None
        shown = os.fstat(self._stack.fileno()).st_size
        self._process.send_signal(signal.SIGUSR1)  # to the supervisor, which asks
        stack = b""
        for _ in range(20):
            time.sleep(0.025)
            text = os.pread(self._stack.fileno(), 1 << 20, shown)
            if text and text == stack:  # complete
                break
            stack = text
        return _IMPORTS in stack

    def _receive(self, id: int, deadline: float) -> Reply:
        """The reply to request ``id``; whatever else the process writes ends it, and fails the call."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        end = self._buffer.find(b"\n")
        while end < 0:
            if not self._ready(pipe, select.POLLIN, deadline):
                raise CallFailed("timeout", "did not answer")
            chunk = os.read(pipe, 1 << 20)
            if not chunk:
                raise self._died()
            position = chunk.find(b"\n")  # only in what is new: a long reply is read in linear time
            end = position if position < 0 else len(self._buffer) + position
            self._buffer += chunk
            if len(self._buffer) > _REPLY_BYTES:
                self.close()
                raise CallFailed("died", f"its process wrote a reply of more than {_REPLY_BYTES >> 20} MiB")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._bound_log()
        try:
            reply = read_reply(line, id)
        except (ValueError, RecursionError):
            raise self._strange() from None
        if (failure := reply.get("error")) is not None:
            source = "" if self._packed is None else _source_line(failure)
            where = f"{failure['kind']}:{failure['file']}:{failure['line']}"
            text = f"{failure['text'][:_TEXT]}{source}"
            text += self._memory_hint() if failure["kind"].endswith("MemoryError") else ""
            raise CallFailed("raised", text, failure["kind"], where)
        return reply

    def _ready(self, pipe: int, event: int, deadline: float) -> bool:
        """Whether a pipe becomes ready before the deadline; False after it, however much flows."""
        poll = select.poll()  # not select(), which refuses file descriptors from 1024 on
        poll.register(pipe, event)
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(min(left, _LOOK) * 1000):
                return True
            self._bound_log()
        return False

    def _bound_log(self) -> None:
        if self._log is not None:
            bound_log(self._log)

    def _strange(self) -> CallFailed:
        self.close()
        return CallFailed("died", "its process wrote something other than a reply to its pipe")

    def _died(self) -> CallFailed:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            cause = "closed its pipe"
        else:
            names = {number.value: number.name for number in signal.Signals}
            killer = names.get(-code, f"signal {-code}")
            cause = f"exited with code {code}" if code >= 0 else f"was killed by {killer}"
            cause += self._memory_hint() if code else ""
        self.close()
        return CallFailed("died", f"its process {cause}")

    def _memory_hint(self) -> str:
        return "" if self._memory_gb is None else f"; its limit is memory_gb: {self._memory_gb:g}"


def bound_log(log: Path) -> None:
    """Cut a log that has grown past ``LOG_BYTES`` to its newest quarter, with a note at its top.

    Those who write to it append, and go on doing so.
    """
    with suppress(OSError):
        if log.stat().st_size <= LOG_BYTES:
            return
        with _CUTTING, open(log, "a+b") as file:
            size = file.tell()
            if size <= LOG_BYTES:  # cut by another thread meanwhile
                return
            file.seek(size - LOG_BYTES // 4)
            tail = file.read(LOG_BYTES // 4)
            _, newline, lines = tail.partition(b"\n")
            file.truncate(0)
            note = f"[klent: this file had grown to {size >> 20} MiB; its older lines were removed]\n"
            file.write(note.encode() + (lines if newline else tail))


def _line(request: Request) -> bytes:
    try:
        return json.dumps(request).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise CallFailed("raised", f"cannot be sent its arguments: {error}") from None


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


def _end_process(process: subprocess.Popen[bytes], our_end: int) -> None:
    os.close(our_end)
    process.terminate()  # the supervisor ends everything below it; a fork of this process may hold the lifeline
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
    try:
        process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

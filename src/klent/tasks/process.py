"""A function in another process, called with a time limit."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

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
    """One function in a process of its own, started when first needed and again after it was ended.

    The process leads its own session, so that Ctrl-C in the terminal does not reach it, and it ends with this
    object, with this process (even one killed outright), or when a call runs past its limit. Hash seeds and
    thread counts are fixed, so that a call's value depends on its arguments alone.

    Args:
        target: a built-in name, ``/path/file.py:function`` or ``package.module:function``.
        log: file that receives what the function prints; None = this process's standard error.
    """

    def __init__(self, target: str, log: Path | None = None) -> None:
        self.target = target
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None
        self._buffer = b""
        self._description: dict[str, Any] | None = None
        self._retired = False
        self.metrics: dict[str, float] = {}

    def launch(self) -> None:
        """Start the process and let it import, without waiting."""
        if self._process is not None:
            return
        if self._retired:
            raise CallFailed("died", "was closed")
        environment = os.environ | {
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        lifeline, held = os.pipe()  # nothing is ever written; its closing tells the process that we are gone
        log = open(self._log, "ab") if self._log else None  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "klent.tasks.worker", str(lifeline), self.target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(lifeline,),
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            os.close(held)
            raise CallFailed("died", f"could not be started: {error}") from None
        finally:
            os.close(lifeline)
            if log:
                log.close()
        self._end = weakref.finalize(self, _end_process, self._process, held)
        self._buffer = b""
        self._description = None
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def describe(self) -> dict[str, Any]:
        """The function's parameters: ``required`` and ``named`` names, and whether it takes ``any`` other."""
        self.launch()
        if self._description is None:
            try:
                self._description = self._receive(time.monotonic() + START_SECONDS)
            except CallFailed as error:
                self.close()
                late = f"did not finish its imports in {START_SECONDS:g} s"
                raise (CallFailed("timeout", late) if error.kind == "timeout" else error) from None
        return self._description

    def call(self, arguments: dict[str, Any], timeout: float) -> Any:
        """Call the function by keyword and return its value; ``metrics`` holds what it logged, by name.

        Args:
            arguments: JSON-able values by name; those that the function does not take are left out.
            timeout: seconds allowed, not counting the process's start.

        Raises:
            CallFailed: no value came; the process is ended and starts anew at the next call, unless the
                function merely raised.
        """
        self.describe()
        deadline = time.monotonic() + timeout
        try:
            self._send(arguments, deadline)
            return self._receive(deadline)
        except CallFailed as error:
            if error.kind == "timeout":
                self.close()
                raise CallFailed("timeout", f"took longer than its limit of {timeout:g} s") from None
            raise

    def close(self) -> None:
        """End the process and whatever it started."""
        if self._end is not None:
            self._end()
        self._process = self._end = self._description = None

    def retire(self) -> None:
        """End the process for good: a later call fails."""
        self._retired = True
        self.close()

    def _send(self, request: dict[str, Any], deadline: float) -> None:
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

    def _receive(self, deadline: float) -> Any:
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
            reply = json.loads(line)
        except ValueError:
            self.close()
            raise CallFailed("died", "its process wrote something else than a reply to its pipe") from None
        if "error" in reply:
            raise CallFailed("raised", reply["error"]["text"], reply["error"]["kind"])
        self.metrics = reply.get("metrics", {})
        return reply["ok"]

    def _died(self) -> CallFailed:
        assert self._process is not None
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            how = "closed its pipe"
        else:
            names = {number.value: number.name for number in signal.Signals}
            killer = names.get(-code, f"signal {-code}")
            how = f"exited with code {code}" if code >= 0 else f"was killed by {killer}"
        self.close()
        return CallFailed("died", f"its process {how}")


def _ready(pipe: int, event: int, deadline: float) -> bool:
    poll = select.poll()  # not select(), which refuses file descriptors from 1024 on
    poll.register(pipe, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _end_process(process: subprocess.Popen[bytes], held: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    os.close(held)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
    process.wait()

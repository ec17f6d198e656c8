"""The process above a reward's: it ends whatever the reward started, whatever that has made of itself.

A child with a session of its own, or one that was forked twice, is out of reach of a signal to the process
group. On Linux its orphans come to the supervisor (``PR_SET_CHILD_SUBREAPER``), level by level as it kills
what is above them, and no process can leave that tree. Elsewhere the reward's process group is ended.
"""

import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NoReturn

STACK_SIGNAL = getattr(
    signal, "SIGRTMAX", signal.SIGUSR2
)  # asks the process for its stack; rewards leave it free
_GIVE_UP = 5.0  # seconds; a process that the kernel holds in a system call dies later
_LINUX = sys.platform == "linux"
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
_HEARD = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def supervise(lifeline: int, unused: Iterable[int] = ()) -> None:
    """Go on in a child of this process, which leads a session of its own; this process watches over it.

    It ends every descendant, and itself, when the child ends (with the child's own status), when the other
    end of ``lifeline`` closes, or on SIGTERM. On SIGUSR1 it asks the child for its stack.

    Args:
        lifeline: a pipe to read from, to which nothing is ever written.
        unused: descriptors that are the child's alone.
    """
    _prctl(_SET_CHILD_SUBREAPER, 1)
    above = os.getpid()
    heard, say = os.pipe()
    os.set_blocking(say, False)
    before = signal.set_wakeup_fd(say), [signal.signal(number, _nothing) for number in _HEARD]
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(before[0])
        for number, handler in zip(_HEARD, before[1], strict=True):
            signal.signal(number, handler)
        for descriptor in (heard, say, lifeline):
            os.close(descriptor)
        os.setsid()
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != above:  # it ended before the kernel was asked
            os._exit(1)
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where the machine runs out of memory, this ends and not the training
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, *unused):
        os.dup2(nothing, descriptor)
    _watch(child, heard, lifeline)


def _watch(child: int, heard: int, lifeline: int) -> NoReturn:
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    poll.register(lifeline, select.POLLIN)
    status = _reap(child)
    asked_to_end = False
    while status is None and not asked_to_end:
        for descriptor, _ in poll.poll():
            signals = set(os.read(heard, 4096)) if descriptor == heard else {int(signal.SIGTERM)}
            if signal.SIGUSR1 in signals:
                with suppress(ProcessLookupError):
                    os.kill(child, STACK_SIGNAL)
            asked_to_end = asked_to_end or bool(signals - {signal.SIGUSR1, signal.SIGCHLD})
        status = _reap(child)
    _end_all(child)
    _exit_as(0 if status is None else status)


def _reap(child: int) -> int | None:
    """Collect whatever has ended; the child's status, if it has."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == child else status
    return status


def _end_all(child: int) -> None:
    """Kill children until there are none: those of a child that died are then children of this process."""
    give_up = time.monotonic() + _GIVE_UP
    while time.monotonic() < give_up:
        with suppress(ProcessLookupError, PermissionError):
            if not _LINUX:
                os.killpg(child, signal.SIGKILL)
        for pid in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _children() -> Iterator[int]:
    home = os.getpid()
    for entry in os.listdir("/proc") if _LINUX else ():
        if entry.isdecimal():
            with suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as file:
                if (
                    int(file.read().rpartition(b")")[2].split()[1]) == home
                ):  # a name may hold anything, also ")"
                    yield int(entry)


def _exit_as(status: int) -> NoReturn:
    """End as the child did, so that who waits for this process reads the child's status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(1)
    os._exit(os.waitstatus_to_exitcode(status))


def _nothing(number: int, frame: object) -> None:
    """A handler: what arrives is written to the wakeup descriptor."""


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)

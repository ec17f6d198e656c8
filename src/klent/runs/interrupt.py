"""Ctrl-C as a request: the current step is finished and saved; a second Ctrl-C stops at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StopRequest:
    """Turns the first SIGINT or SIGTERM into ``asked = True``; the second one has its usual effect.

    Args:
        on_first: called without arguments at the first signal, to tell the user what happens next.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self.asked = False
        self.signal: int | None = None  # which one asked
        self._on_first = on_first
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python allows no handlers in other threads
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked, self.signal = True, number
        self._restore()
        self._on_first()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

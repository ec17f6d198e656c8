"""Ctrl-C as a request: the current step is finished and saved; a second Ctrl-C stops at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from klent.kit.world import World


class StopRequest:
    """Turns the first SIGINT or SIGTERM into ``asked = True``; the second one has its usual effect.

    Where ranks share the run, every further signal is left unheard, as torchrun passes on what a terminal has sent
    already; it ends a rank that does not stop within its own time.

    Args:
        on_first: called without arguments at the first signal, to tell the user what happens next.
        world: the ranks, which stop after the same step.
    """

    def __init__(self, on_first: Callable[[], None], world: World) -> None:
        self.asked = False
        self.signal: int | None = None  # which one asked
        self._own = 0  # that this process heard; what others say never takes its place
        self._on_first = on_first
        self._world = world
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

    def agreed(self) -> bool:
        """Whether any rank was asked; each rank calls this once per step."""
        heard = [int(said) for said in self._world.gather(str(self._own).encode())]
        self.signal = max(heard) or None
        self.asked = self.signal is not None
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self._own = bool(self._own), self._own or number
        if self._world.size == 1:
            self._restore()
        if not again:
            self._on_first()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

"""Text of others on a terminal: what a model or a reward wrote is shown, and never obeyed."""

import contextlib
import os
import unicodedata
from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_KEPT = "\n\t"
_JOINERS = "\u200c\u200d"  # of letters and emoji
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats such as bidi overrides, surrogates, separators


def visible(text: str) -> str:
    r"""``text`` with every character that steers a terminal, or hides, written out as its escape.

    Control characters and escape sequences (colours, cursor moves, window titles), bidirectional controls and
    other invisible characters, and lone surrogates; new lines and tabs stay.

    >>> print(visible("\x1b[2J\x1b]0;title\x07 four\r\n"), end="")
    \x1b[2J\x1b]0;title\x07 four\x0d
    >>> visible("\u202eabc\u2069"), visible("é 数 👩\u200d🔬")
    ('\\u202eabc\\u2069', 'é 数 👩\u200d🔬')
    """
    if text.isprintable():  # nothing of the kind; the common case
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in _UNSEEN and character not in _KEPT + _JOINERS
    if not hidden:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class SafeConsole(Console):
    """A console that shows all text as :func:`visible` does; colours and cursor moves are the console's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As of rich, the text of each piece made visible."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else Segment(visible(piece.text), piece.style)

    def on_broken_pipe(self) -> None:
        """Leave it to the caller: rich would end the process, whatever else that is doing."""
        raise  # called by rich while it handles the BrokenPipeError


def discard(stream: IO[str]) -> None:
    """What is still written to a stream that failed goes nowhere, what its buffer holds at the exit included."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())

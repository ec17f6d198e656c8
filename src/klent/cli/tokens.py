"""Tokens with a number under each, as wide as the terminal is."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Rows = Sequence[tuple[str, Sequence[float]]]

#: from small to large
_SHADES = ("green", "yellow", "red")


def show_tokens(console: Console, tokens: Sequence[str], rows: Rows, *, shade: Sequence[float]) -> None:
    """Print a completion token by token, in blocks of lines that fit.

    Args:
        console: where to print.
        tokens: pieces of text.
        rows: a name and a number for each token.
        shade: a number of each token that colours it: below 0.05, below 0.5, above.
    """
    for line in blocks(tokens, rows, width=console.width):
        for name, cells, places in line:
            text = Text(f"{name:>{_margin(rows)}} ", style="dim")
            for cell, place in zip(cells, places, strict=True):
                colour = _SHADES[(shade[place] >= 0.05) + (shade[place] >= 0.5)]
                text.append(cell, style=colour if name == "" else "dim")
                text.append(" ")
            console.print(text, soft_wrap=True)
        console.print("")


Line = tuple[str, list[str], list[int]]


def blocks(tokens: Sequence[str], rows: Rows, *, width: int) -> Iterator[list[Line]]:
    """Lines of cells of one width, with the places of their tokens; a block is a line of tokens and its rows.

    >>> for block in blocks(["Hi", " you"], [("α", [0.5, 1.0])], width=80):
    ...     for name, cells, _ in block:
    ...         print(name, cells)
     ['Hi  ', '·you']
    α ['0.50', '1.00']
    """
    shown = [token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") for token in tokens]
    columns = [[piece, *(f"{values[place]:.2f}" for _, values in rows)] for place, piece in enumerate(shown)]
    widths = [max(map(cell_len, column)) for column in columns]
    room = width - _margin(rows) - 2
    places: list[int] = []
    for place in range(len(tokens) + 1):
        full = places and place < len(tokens) and sum(widths[i] + 1 for i in [*places, place]) > room
        if full or (places and place == len(tokens)):
            names = ["", *(name for name, _ in rows)]
            yield [
                (name, [_padded(columns[i][k], widths[i]) for i in places], places)
                for k, name in enumerate(names)
            ]
            places = []
        places = [*places, place]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _margin(rows: Rows) -> int:
    return max((cell_len(name) for name, _ in rows), default=0)

"""Tokens with numbers under each, wrapped to the width of the terminal."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from klent.kit.terminal import visible

Rows = Sequence[tuple[str, Sequence[float]]]

#: from small to large
_SHADES = ("green", "yellow", "red")


def show_tokens(console: Console, tokens: Sequence[str], rows: Rows, *, shade: Sequence[float]) -> None:
    """Print a completion token by token, in blocks of lines that fit.

    Args:
        console: where to print.
        tokens: pieces of text.
        rows: name and one number per token.
        shade: one number per token that colours it: below 0.05, below 0.5, above.
    """
    for line in blocks(tokens, rows, width=console.width):
        for name, cells, indices in line:
            text = Text(f"{name:>{_margin(rows)}} ", style="dim")
            for cell, index in zip(cells, indices, strict=True):
                colour = _SHADES[(shade[index] >= 0.05) + (shade[index] >= 0.5)]
                text.append(cell, style=colour if name == "" else "dim")
                text.append(" ")
            console.print(text, soft_wrap=True)
        console.print("")


Line = tuple[str, list[str], list[int]]


def blocks(tokens: Sequence[str], rows: Rows, *, width: int) -> Iterator[list[Line]]:
    """Lines of aligned cells, with the indices of their tokens; a block is a line of tokens and its rows.

    >>> for block in blocks(["Hi", " you"], [("α", [0.5, 1.0])], width=80):
    ...     for name, cells, _ in block:
    ...         print(name, cells)
     ['Hi  ', '·you']
    α ['0.50', '1.00']
    """
    shown = [token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") for token in tokens]
    pieces = [visible(token) for token in shown]
    columns = [[piece, *(f"{values[i]:.2f}" for _, values in rows)] for i, piece in enumerate(pieces)]
    widths = [max(map(cell_len, column)) for column in columns]
    room = width - _margin(rows) - 2
    names = ["", *(name for name, _ in rows)]
    for indices in _lines(widths, room):
        yield [
            (name, [_padded(columns[i][k], widths[i]) for i in indices], indices)
            for k, name in enumerate(names)
        ]


def _lines(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Indices of the cells of each line: as many as fit, at least one."""
    indices: list[int] = []
    for index, width in enumerate(widths):
        if indices and sum(widths[i] + 1 for i in indices) + width + 1 > room:
            yield indices
            indices = []
        indices.append(index)
    if indices:
        yield indices


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _margin(rows: Rows) -> int:
    return max((cell_len(name) for name, _ in rows), default=0)

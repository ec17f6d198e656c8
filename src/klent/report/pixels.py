"""A square image as SVG: one rectangle for each pixel, in levels of the page's own ink."""

import math
from collections.abc import Sequence

LEAST, MOST = 4, 32  # pixels of an edge: a smaller square is no picture, and a larger one no small drawing
LEVELS = 16


def is_drawn(count: int) -> bool:
    """Whether so many coordinates are drawn: those of a square of such an edge."""
    edge = math.isqrt(count)
    return edge * edge == count and LEAST <= edge <= MOST


def pixels(values: Sequence[float]) -> str:
    """The drawing of an image whose pixels are from -1 (paper) to 1 (ink), row by row; empty where it is no square.

    What lies outside is cut. Neighbours of one level in a row are one rectangle.

    >>> pixels([-1.0] * 8), pixels([-1.0] * 15 + [1.0])[-61:]
    ('', '<rect x="3" y="3" width="1" height="1" opacity="1.00"/></svg>')
    """
    edge = math.isqrt(len(values))
    if not is_drawn(len(values)):
        return ""
    levels = [min(max(round((value + 1) / 2 * LEVELS), 0), LEVELS) for value in values]
    parts = []
    for y in range(edge):
        row, x = levels[y * edge : (y + 1) * edge], 0
        while x < edge:
            end = next((place for place in range(x, edge) if row[place] != row[x]), edge)
            if row[x]:
                size = f'x="{x}" y="{y}" width="{end - x}" height="1"'
                parts.append(f'<rect {size} opacity="{row[x] / LEVELS:.2f}"/>')
            x = end
    drawn = "".join(parts)
    return (
        f'<svg class="pixels" viewBox="0 0 {edge} {edge}" role="img" aria-label="image" '
        f'shape-rendering="crispEdges" fill="currentColor">{drawn}</svg>'
    )

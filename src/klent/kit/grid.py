"""The best point of a grid, refused where the grid cannot tell it."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

_TIED = 1e-9  # relative: closer values differ by rounding


def grid_optimum(
    grid: Sequence[float],
    values: Sequence[float],
    *,
    best: Literal["least", "largest"],
    domain: tuple[float, float] = (-math.inf, math.inf),
    ties: Literal["first", "last"] = "first",
) -> int:
    """The index of the best point, which may lie at an end of the grid only where the domain ends there too.

    At any other end the optimum may lie beyond it, and its value would be that of an arbitrary limit. Of
    points that are equally good the first or the last is taken, an end of the grid only where no other is
    left.

    Args:
        grid: points in ascending order.
        values: what each point gives, all finite.
        best: which value is the best one.
        domain: smallest and largest point that exist: ``(0, 1)`` for a share.
        ties: which of several equally good points.

    Raises:
        ValueError: the optimum is at an end that is not the domain's, no point is better than another, or
            the points are not in order or have no finite value each.

    Examples:
        >>> grid_optimum([1, 4, 16], [3.0, 1.0, 2.0], best="least")
        1
        >>> grid_optimum([0.0, 0.5, 1.0], [1.0, 2.0, 3.0], best="largest", domain=(0, 1))
        2
        >>> grid_optimum([1, 4, 16], [3.0, 2.0, 1.0], best="least")
        Traceback (most recent call last):
        ValueError: the best of 1, 4, 16 is 16, where the grid ends: a better one may lie beyond it. Extend it
    """
    shown = ", ".join(f"{point:g}" for point in grid)
    if len(values) != len(grid) or not all(math.isfinite(value) for value in values):
        raise ValueError(f"{len(values)} values for {shown}: each point of a grid needs one finite value")
    if any(left >= right for left, right in pairwise(grid)):
        raise ValueError(f"{shown}: a grid is searched in ascending order, so that its ends are known")
    limit = max(values) if best == "largest" else min(values)
    tied = [i for i, value in enumerate(values) if math.isclose(value, limit, rel_tol=_TIED)]
    if len(tied) == len(grid) > 1:
        raise ValueError(
            f"{shown} are equally good ({limit:g}): what is searched for does not depend on them"
        )
    open_ends = {0} if grid[0] > domain[0] else set()
    open_ends |= {len(grid) - 1} if grid[-1] < domain[1] else set()
    inside = [i for i in tied if i not in open_ends]
    if not inside:
        raise ValueError(
            f"the best of {shown} is {grid[tied[0]]:g}, where the grid ends: a better one may lie beyond it. "
            "Extend it"
        )
    return inside[0 if ties == "first" else -1]

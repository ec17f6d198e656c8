"""Wilson's interval from its definition: the p at which |share - p| is 1.96 standard errors of p."""

import math


def wilson_by_root(share: float, count: int) -> tuple[float, float]:
    def distance(p: float) -> float:
        return abs(share - p) - 1.959964 * math.sqrt(p * (1 - p) / count)

    def root(inside: float, outside: float) -> float:
        if distance(outside) <= 0:
            return outside
        for _ in range(200):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if distance(middle) <= 0 else (inside, middle)
        return (inside + outside) / 2

    return root(share, 0.0), root(share, 1.0)

"""Tails of Student's t and Fisher's F, from the incomplete beta function; numpy has neither."""

import math
from functools import lru_cache

_TINY = 1e-300


def beta_share(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function :math:`I_x(a, b)`, by its continued fraction.

    Args:
        x: from 0 to 1.
        a, b: above 0.

    Examples:
        >>> round(beta_share(0.5, 2.0, 2.0), 12), beta_share(0.0, 1.0, 3.0), beta_share(1.0, 1.0, 3.0)
        (0.5, 0.0, 1.0)
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1.0 - beta_share(1.0 - x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(front) * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    """Lentz's evaluation of the continued fraction of the incomplete beta function."""
    upper, lower = 1.0, 1.0 / max(1.0 - (a + b) * x / (a + 1), _TINY)
    value = lower
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            lower = 1.0 / (1.0 + term * lower or _TINY)
            upper = 1.0 + term / upper or _TINY
            value *= lower * upper
        if abs(lower * upper - 1.0) < 1e-15:
            break
    return value


def t_two_sided(t: float, df: float) -> float:
    """The probability that Student's t with ``df`` degrees of freedom is at least ``|t|`` away from 0.

    >>> round(t_two_sided(4.302653, 2), 6), t_two_sided(float("inf"), 3)
    (0.05, 0.0)
    """
    return 0.0 if math.isinf(t) else beta_share(df / (df + t * t), df / 2, 0.5)


@lru_cache(maxsize=1024)
def t_bound(probability: float, df: float) -> float:
    """The ``t`` that Student's t exceeds in absolute value with this probability.

    ``t_bound(0.05, n - 1)`` times the standard error is half a 95% interval of the mean of n values.

    >>> round(t_bound(0.05, 2), 4), round(t_bound(0.05, 16), 4)
    (4.3027, 2.1199)
    """
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):  # no float lies between them
            break
        low, high = (middle, high) if t_two_sided(middle, df) > probability else (low, middle)
    return (low + high) / 2


def f_above(f: float, df1: float, df2: float) -> float:
    """The probability that Fisher's F with these degrees of freedom is at least ``f``.

    >>> round(f_above(6.9443, 2, 4), 4)
    0.05
    """
    return 0.0 if math.isinf(f) else beta_share(df2 / (df2 + df1 * f), df2 / 2, df1 / 2)

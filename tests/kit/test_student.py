"""Tails of t and F against mpmath, integration and printed tables."""

import mpmath
import pytest

from klent.kit.student import beta_share, f_above, t_bound, t_two_sided


@pytest.mark.parametrize("a", [0.5, 1.0, 2.5, 40.0])
@pytest.mark.parametrize("b", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("x", [1e-6, 0.1, 0.5, 0.93, 1 - 1e-9])
def test_the_incomplete_beta_function(x, a, b):
    expected = float(mpmath.betainc(a, b, 0, x, regularized=True))
    assert beta_share(x, a, b) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(("df", "t"), [(1, 0.3), (2, 4.3), (5, 2.0), (16, 2.12), (200, 7.0)])
def test_tails_of_t_and_f_by_integration(df, t):
    def density(x):
        return mpmath.gamma((df + 1) / 2) / (
            mpmath.sqrt(df * mpmath.pi) * mpmath.gamma(df / 2) * (1 + x * x / df) ** ((df + 1) / 2)
        )

    tail = 2 * float(mpmath.quad(density, [t, 2 * t + 10, mpmath.inf]))
    assert t_two_sided(t, df) == pytest.approx(tail, rel=1e-6)
    assert t_two_sided(-t, df) == t_two_sided(t, df)
    assert f_above(t * t, 1, df) == pytest.approx(tail, rel=1e-6)  # the square of t is F(1, df)
    assert t_two_sided(t_bound(tail, df), df) == pytest.approx(tail, rel=1e-9)


def test_bounds_that_are_printed_in_every_table():
    for probability, df, bound in [(0.05, 2, 4.303), (0.05, 10, 2.228), (0.01, 4, 4.604), (0.10, 1, 6.314)]:
        assert t_bound(probability, df) == pytest.approx(bound, abs=1e-3)

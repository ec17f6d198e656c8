"""The search of a grid: what it finds, and every way in which a grid cannot tell the optimum."""

import math

import pytest

from klent.kit.grid import grid_optimum


def test_inside_the_grid() -> None:
    assert grid_optimum([1, 4, 16, 64], [5.0, 2.0, 1.0, 3.0], best="least") == 2
    assert grid_optimum([1, 4, 16, 64], [5.0, 9.0, 1.0, 3.0], best="largest") == 1


@pytest.mark.parametrize(("best", "values"), [("least", [1.0, 2.0, 3.0]), ("largest", [1.0, 2.0, 3.0])])
def test_an_end_of_the_grid_is_refused_and_an_end_of_the_domain_is_not(best, values) -> None:
    end = 0 if best == "least" else 2
    with pytest.raises(ValueError, match=f"is {end / 2:g}, where the grid ends: .* Extend it"):
        grid_optimum([0.0, 0.5, 1.0], values, best=best)
    assert grid_optimum([0.0, 0.5, 1.0], values, best=best, domain=(0, 1)) == end
    with pytest.raises(ValueError, match="where the grid ends"):
        grid_optimum([0.1, 0.5, 0.9], values, best=best, domain=(0, 1))


def test_ties() -> None:
    values = [3.0, 1.0, 1.0, 1.0 + 1e-12, 2.0]
    assert grid_optimum(range(5), values, best="least") == 1
    assert grid_optimum(range(5), values, best="least", ties="last") == 3
    assert (
        grid_optimum(range(3), [2.0, 1.0, 1.0], best="least", ties="last") == 1
    )  # not the end, if another is as good
    with pytest.raises(ValueError, match="equally good"):
        grid_optimum(range(3), [1.0, 1.0, 1.0], best="least", domain=(0, 2))


def test_what_is_no_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="one finite value"):
        grid_optimum([1, 2, 3], [1.0, math.nan, 2.0], best="least")
    with pytest.raises(ValueError, match="one finite value"):
        grid_optimum([1, 2, 3], [1.0, 2.0], best="least")
    with pytest.raises(ValueError, match="ascending"):
        grid_optimum([1, 3, 2], [2.0, 1.0, 2.0], best="least")
    with pytest.raises(ValueError, match="where the grid ends"):
        grid_optimum([1], [1.0], best="least")

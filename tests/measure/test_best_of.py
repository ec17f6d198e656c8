"""The best of n, read off answers: against every choice of n of them, and against Gaussian order statistics."""

import itertools
import math
import random

import pytest

from klent.measure.best_of import best_of, best_of_kl, best_of_weights


def by_enumeration(by: list[float], value: list[float], n: int) -> float:
    """Mean over every subset; of equally good ones the mean."""
    found = []
    for chosen in itertools.combinations(range(len(by)), n):
        top = max(by[index] for index in chosen)
        best = [value[index] for index in chosen if by[index] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_over_all_choices_of_n_answers(seed: int, n: int) -> None:
    drawn = random.Random(seed)
    by = [drawn.choice([0.0, 0.5, 1.0, 2.0]) if seed % 2 else drawn.random() for _ in range(5)]
    value = [drawn.random() for _ in by]
    assert math.isclose(best_of(by, value, n), by_enumeration(by, value, n), rel_tol=1e-9)


def test_equally_good_answers_count_alike() -> None:
    assert best_of([1.0, 1.0, 0.0], [0.0, 1.0, 5.0], 3) == 0.5
    assert best_of([1.0, 1.0, 1.0], [0.0, 0.0, 3.0], 2) == 1.0


def test_the_chances_are_of_one_answer_and_grow() -> None:
    for n in range(1, 7):
        weights = best_of_weights(6, n)
        assert math.isclose(sum(weights), 1.0)
        assert weights == sorted(weights)


def test_more_answers_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 3, expected 1 to 2"):
        best_of([1.0, 2.0], [1.0, 2.0], 3)


def test_the_bound_on_the_kl_is_that_of_a_continuous_reward() -> None:
    """The best of n of uniform draws has density n u^(n-1): its KL from the uniform one, integrated."""
    for n in (2, 4, 16):
        steps = 200_000
        total = sum((density := n * ((i + 0.5) / steps) ** (n - 1)) * math.log(density) for i in range(steps))
        assert math.isclose(best_of_kl(n), total / steps, rel_tol=1e-5)

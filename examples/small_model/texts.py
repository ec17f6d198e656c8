"""Arithmetic by two kinds of writers: the small model's pretraining texts, and its problems.

A problem is a chain such as `4+9-2+7` or `5+2*6-3`. A text is a problem with one writer's way to its answer:

    4+9-2+7=?a 4+9=13,13-2=11,11+7=18 #18

Careful writers (notations a, b, c) seldom slip, but they work from left to right and ignore precedence.
Sloppy writers (notations d, e) multiply first, as they should, and slip often. A slip is carried into the
following steps. So a careful writer is the better teacher for sums and always wrong where a product is late.
"""

import random

CHARACTERS = "0123456789+-*=?#,;:>abcde "
NOTATIONS = {"a": 0.22, "b": 0.20, "c": 0.18, "d": 0.22, "e": 0.18}
"""Share of texts per notation: two texts in five are by a sloppy writer."""
SLIP = {"a": 0.08, "b": 0.08, "c": 0.08, "d": 0.22, "e": 0.22}
"""Probability that a step is wrong, per notation."""
LATE_PRODUCT = 0.3
"""Share of problems drawn with a product that is not at the start; too large results are drawn again."""

Chain = tuple[list[int], list[str]]


def draw_problem(rng: random.Random) -> Chain:
    """Numbers and the signs between them; the answer and all left-to-right partial results are in 0 .. 99."""
    while True:
        size = rng.choice([4, 4, 5])
        numbers = [rng.randint(1, 9) for _ in range(size)]
        signs = [rng.choice("++-") for _ in range(size - 1)]
        if rng.random() < LATE_PRODUCT:
            signs[rng.randrange(1, size - 1)] = "*"
        if all(0 <= value <= 99 for value in partial_results(numbers, signs)):
            product_free = multiply_first(numbers, signs)[1:]
            if all(0 <= value <= 99 for value in partial_results(*product_free)):
                return numbers, signs


def partial_results(numbers: list[int], signs: list[str]) -> list[int]:
    """Left to right, without precedence."""
    total, results = numbers[0], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        total = _apply(total, sign, number)
        results.append(total)
    return results


def multiply_first(numbers: list[int], signs: list[str]) -> tuple[list[str], list[int], list[str]]:
    """The products, as steps, and the remaining chain of sums."""
    steps, left, between = [], [numbers[0]], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign == "*":
            steps.append(f"{left[-1]}*{number}")
            left[-1] *= number
        else:
            between.append(sign)
            left.append(number)
    return steps, left, between


def show(problem: Chain) -> str:
    """The problem as text, which is the prompt."""
    numbers, signs = problem
    return str(numbers[0]) + "".join(f"{s}{n}" for s, n in zip(signs, numbers[1:], strict=True)) + "=?"


def answer(problem: Chain) -> int:
    """The right answer, by the rules of precedence."""
    _, numbers, signs = multiply_first(*problem)
    return ([numbers[0], *partial_results(numbers, signs)])[-1]


def solve(problem: Chain, notation: str, rng: random.Random, slip: float) -> str:
    """One writer's way to an answer, right or wrong."""
    numbers, signs = problem
    steps: list[tuple[str, int]] = []

    def step(left: int, sign: str, right: int) -> int:
        value = _apply(left, sign, right)
        if rng.random() < slip:
            value = max(0, value + rng.choice([-10, -2, -1, 1, 2, 10]))
        steps.append((f"{left}{sign}{right}", value))
        return value

    if notation in "de":
        left, between = [numbers[0]], []
        for sign, number in zip(signs, numbers[1:], strict=True):
            if sign == "*":
                left[-1] = step(left[-1], sign, number)
            else:
                between.append(sign)
                left.append(number)
        numbers, signs = left, between
    total = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        total = step(total, sign, number)
    return f"{notation} {_written(steps, notation)} #{total}"


def _written(steps: list[tuple[str, int]], notation: str) -> str:
    if notation == "b":
        return ">".join(str(value) for _, value in steps)
    if notation == "c":
        return ",".join(f"{value}:{work}" for work, value in steps)
    mark = {"a": ",", "d": ";", "e": ">"}[notation]
    return mark.join(f"{work}={value}" for work, value in steps)


def draw_text(rng: random.Random) -> tuple[str, str]:
    """A problem and one writer's solution."""
    problem = draw_problem(rng)
    notation = rng.choices(list(NOTATIONS), list(NOTATIONS.values()))[0]
    return show(problem), solve(problem, notation, rng, SLIP[notation])


def _apply(left: int, sign: str, right: int) -> int:
    return left + right if sign == "+" else left - right if sign == "-" else left * right

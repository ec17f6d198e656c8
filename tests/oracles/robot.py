"""The point that goes to a goal on a plane, as plain numbers: what a segment was worth."""

import math

Point = tuple[float, float]


def moved(hand: Point, action: Point) -> Point:
    """A step of 0.1 of the action, each number of it within [-1, 1]."""
    x, y = (h + 0.1 * min(1.0, max(-1.0, a)) for h, a in zip(hand, action, strict=True))
    return x, y


def paid(hand: Point, goal: Point) -> float:
    """1 less the distance, from 0 on."""
    return max(0.0, 1.0 - math.hypot(goal[0] - hand[0], goal[1] - hand[1]))


def straight(hand: Point, goal: Point, steps: int) -> float:
    """What is earned by going straight for the goal along each axis: no simulation, each step in closed form."""
    total = 0.0
    for n in range(1, steps + 1):
        left = [max(0.0, abs(g - h) - 0.1 * n) for h, g in zip(hand, goal, strict=True)]
        total += max(0.0, 1.0 - math.hypot(*left))
    return total


def regret(hand: Point, goal: Point, actions: list[Point], left: int) -> tuple[float, float, bool]:
    """Regret, return and success of these actions, with ``left`` steps to the horizon at their start."""
    best, earned, solved = straight(hand, goal, left), 0.0, False
    for action in actions:
        hand = moved(hand, action)
        earned += paid(hand, goal)
        solved = solved or math.hypot(goal[0] - hand[0], goal[1] - hand[1]) < 0.15
    return best - earned - straight(hand, goal, left - len(actions)), earned, solved


def gaussian_kl(mean_p: list[float], std_p: float, mean_q: list[float], std_q: list[float]) -> float:
    """KL of Gaussians with independent coordinates, coordinate by coordinate."""
    return sum(
        math.log(sq / std_p) + (std_p**2 + (mp - mq) ** 2) / (2 * sq**2) - 0.5
        for mp, mq, sq in zip(mean_p, mean_q, std_q, strict=True)
    )


def gaussian_logp(action: list[float], mean: list[float], std: list[float]) -> float:
    """Log-density of the same."""
    return sum(
        -((a - m) ** 2) / (2 * s**2) - math.log(s) - 0.5 * math.log(2 * math.pi)
        for a, m, s in zip(action, mean, std, strict=True)
    )


def perceptron(weights: list[tuple[list[list[float]], list[float]]], seen: list[float]) -> list[float]:
    """Layers (matrix, bias) with ReLUs between them."""
    values = seen
    for number, (matrix, bias) in enumerate(weights):
        values = [
            sum(w * x for w, x in zip(row, values, strict=True)) + b
            for row, b in zip(matrix, bias, strict=True)
        ]
        if number + 1 < len(weights):
            values = [max(0.0, value) for value in values]
    return values


def future(kls: list[list[float]], time: int, gamma: float) -> float:
    """Mean over continuations of what comes after ``time``: each a KL for every step of the segment."""
    return sum(sum(gamma ** (m - time) * kl[m] for m in range(time + 1, len(kl))) for kl in kls) / len(kls)

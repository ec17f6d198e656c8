"""Losses on pairs, from probabilities where the paper has them."""

import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dpo(
    chosen: float,
    rejected: float,
    ref_chosen: float,
    ref_rejected: float,
    beta: float,
    form: str,
    noise: float,
) -> tuple[float, float]:
    """(loss, dloss/dlogp_chosen) of one pair: arXiv:2305.18290 equation 7, arXiv:2310.12036 equation 17."""
    margin = math.log(math.exp(chosen - ref_chosen) / math.exp(rejected - ref_rejected))
    if form == "ipo":
        return (margin - 1 / (2 * beta)) ** 2, 2 * (margin - 1 / (2 * beta))
    right = sigmoid(beta * margin)
    loss = -(1 - noise) * math.log(right) - noise * math.log(1 - right)
    return loss, beta * (-(1 - noise) * (1 - right) + noise * right)


def simpo(
    chosen: float, rejected: float, lengths: tuple[float, float], beta: float, gamma: float
) -> tuple[float, float]:
    """(loss, dloss/dlogp_chosen) of one pair: arXiv:2405.14734 equation 6, by geometric means of probabilities."""
    better, worse = math.exp(chosen) ** (1 / lengths[0]), math.exp(rejected) ** (1 / lengths[1])
    right = sigmoid(beta * math.log(better / worse) - gamma)
    return -math.log(right), -beta * (1 - right) / lengths[0]


def orpo(chosen: float, rejected: float, lengths: tuple[float, float], coef: float) -> tuple[float, float]:
    """(loss, dloss/dlogp_chosen) of one pair: arXiv:2403.07691 equations 4 to 7."""
    better, worse = math.exp(chosen) ** (1 / lengths[0]), math.exp(rejected) ** (1 / lengths[1])
    ratio = (better / (1 - better)) / (worse / (1 - worse))
    right = ratio / (1 + ratio)
    loss = -math.log(better) - coef * math.log(right)
    return loss, (-1 - coef * (1 - right) / (1 - better)) / lengths[0]


def bradley_terry(chosen: float, rejected: float, margin: float) -> float:
    """Minus the log of e^c / (e^c + e^(r + margin))."""
    return -math.log(math.exp(chosen) / (math.exp(chosen) + math.exp(rejected + margin)))

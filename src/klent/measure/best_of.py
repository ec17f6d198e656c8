"""Best of n: what the best of n answers is worth, read off answers that were sampled anyway."""

import math
from collections.abc import Sequence


def best_of_weights(count: int, n: int) -> list[float]:
    """The chance that the answer of rank 1, 2, ... (from the worst) is the best of ``n`` drawn from ``count``.

        P(rank r) = C(r-1, n-1) / C(count, n)

    >>> best_of_weights(3, 2)
    [0.0, 0.3333333333333333, 0.6666666666666666]

    Raises:
        ValueError: ``n`` is not from 1 to ``count``.
    """
    if not 1 <= n <= count:
        raise ValueError(
            f"n is {n}, expected 1 to {count}: the best of more answers than there are is unknown"
        )
    return [math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)]


def best_of(by: Sequence[float], value: Sequence[float], n: int) -> float:
    """Mean ``value`` of the best of ``n`` answers by ``by``, over all choices of ``n`` of them: unbiased.

    Answers that are equally good share their ranks, as if a coin decided.

    Args:
        by: what chooses, such as a reward model's score.
        value: what the chosen answer is worth, such as the true reward.
        n: answers to choose among.

    >>> best_of([0.1, 0.9, 0.5], [0.0, 1.0, 0.0], 2)
    0.6666666666666666
    """
    order = sorted(range(len(by)), key=lambda index: by[index])
    weights = best_of_weights(len(by), n)
    total, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and by[order[end]] == by[order[start]]:
            end += 1
        share = sum(weights[start:end]) / (end - start)
        total += share * sum(value[index] for index in order[start:end])
        start = end
    return total


def best_of_kl(n: int) -> float:
    """An upper bound on the KL of the best of n from the policy sampled, nats per answer: ``ln n - (n - 1)/n``.

    Exact where no two answers tie and the answers are many; with ties it is less.

    >>> best_of_kl(1), round(best_of_kl(4), 4)
    (0.0, 0.6363)

    References:
        Beirami et al., Theoretical guarantees on the best-of-n alignment policy, 2024, arXiv:2401.01879.
    """
    return math.log(n) - (n - 1) / n

"""An order of rows as a function of the position: all of them once per epoch, each epoch shuffled anew."""

import random


class Epochs:
    """Position :math:`p` of :math:`n` rows is place :math:`p \\bmod n` of epoch :math:`\\lfloor p / n \\rfloor`.

    Args:
        seed: decides the order of every epoch.

    >>> epochs = Epochs(seed=0)
    >>> sorted(epochs.row(position, 3) for position in range(3, 6))
    [0, 1, 2]
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._kept = (-1, 0)
        self._order: list[int] = []

    def row(self, position: int, count: int) -> int:
        """The row at a position, of ``count`` rows."""
        epoch, place = divmod(position, count)
        if (epoch, count) != self._kept:  # kept for speed; the order is a function of seed, epoch and count
            self._order = list(range(count))
            random.Random(f"{self._seed}/epoch/{epoch}").shuffle(self._order)
            self._kept = (epoch, count)
        return self._order[place]

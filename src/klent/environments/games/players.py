"""Scripted players: the best, one that acts at random, and those that are good at one half of a game."""

import random
from collections.abc import Callable, Sequence

from klent.environments.games.game import Game
from klent.environments.games.solve import Solution

Player = Callable[[Sequence[str]], str]
"""The history to the next action. The history is the opening, an action, what was said to it, an action, ..."""


class Optimal:
    """Plays an optimal action in every state.

    Args:
        solution: of the game.
    """

    def __init__(self, solution: Solution) -> None:
        self.solution = solution

    def __call__(self, history: Sequence[str]) -> str:
        """The next action."""
        return self.solution.action(self.solution.game.read(history))


class Random:
    """Plays every action equally often.

    Args:
        game: the game.
        seed: of its dice; they go on from episode to episode.
    """

    def __init__(self, game: Game, seed: int) -> None:
        self.game = game
        self.dice = random.Random(seed)

    def __call__(self, history: Sequence[str]) -> str:
        """The next action."""
        return self.dice.choice(list(self.game.actions(self.game.read(history))))


class OneHalf:
    """Optimal in one half of the game (:meth:`Game.late`), random in the other.

    Two of them, one good at each half, make logs that hold all of a good game and nowhere a whole one: what
    is best can be learnt from them only by joining the halves.

    Args:
        solution: of the game.
        late: whether it is good at the second half.
        seed: of its dice.
    """

    def __init__(self, solution: Solution, *, late: bool, seed: int) -> None:
        self.optimal = Optimal(solution)
        self.random = Random(solution.game, seed)
        self.late = late

    def __call__(self, history: Sequence[str]) -> str:
        """The next action."""
        game = self.random.game
        good = game.late(game.read(history)) == self.late
        return self.optimal(history) if good else self.random(history)


POLICIES: dict[str, Callable[[Game, int], Player]] = {
    "optimal": lambda game, seed: Optimal(Solution(game)),
    "random": Random,
    "early": lambda game, seed: OneHalf(Solution(game), late=False, seed=seed),
    "late": lambda game, seed: OneHalf(Solution(game), late=True, seed=seed),
}
"""The players by name: a game and a seed to a player."""

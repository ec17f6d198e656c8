"""A maze of two forks: a key behind the first, an exit behind the second, and a note read at the start."""

from collections.abc import Sequence
from itertools import product

from klent.environments.games.game import Game, Reply, State, checked_size
from klent.errors import ConfigError

MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
SIDES = ("left", "right")


class Maze(Game):
    """Take the key, open the door, leave by the right exit: a double T.

    The note at the start says on which side the key lies and on which side the exit is; the other exit is a
    trap that ends the episode. Later the player reads only which ways are open, so that both must be
    remembered. With ``note=False`` nothing is told: the best that a player without a memory could hope for.

    Args:
        stem: cells from the start to the first fork.
        arm: cells from a fork to either side.
        turns: budget of an episode.
        cost: of a turn.
        note: whether the start tells the sides.
        plan: lines of a maze of your own, in place of ``stem`` and ``arm``: ``S`` start, two ``K`` where the
            key may lie and two ``E`` exits, the left one first by column, ``D`` doors, ``#`` walls, anything
            else floor.
    """

    allowed = "Answer up, down, left or right."

    def __init__(
        self,
        *,
        stem: int = 1,
        arm: int = 1,
        turns: int = 12,
        cost: float = 0.05,
        note: bool = True,
        plan: Sequence[str] | None = None,
    ) -> None:
        super().__init__(turns=turns, cost=cost)
        self.note = note
        if plan is None:
            size = checked_size("stem", stem, at_least=1), checked_size("arm", arm, at_least=1)
            plan = double_t(*size)
        self.cells = _cells(plan)
        self._said = {cell: f"Ways: {' '.join(self._open(cell))}." for cell in self.cells}
        self.keys, self.exits = self._pair("K"), self._pair("E")
        starts = [cell for cell, kind in self.cells.items() if kind == "S"]
        if len(starts) != 1:
            raise ConfigError(f"the maze's plan has {len(starts)} starts: mark one cell with S")
        self.home = (*starts[0], 0)
        self.rows = [{"key": key, "exit": way} for key, way in product(SIDES, SIDES)]

    def opening(self, start: int) -> str:
        """The task, the note, and the ways."""
        row = self.rows[start]
        note = f" The key is {row['key']}, the exit is {row['exit']}." if self.note else ""
        return f"Take the key, open the door, find the exit.{note} {self.allowed} {self._ways(self.home)}"

    def actions(self, state: State) -> Sequence[str]:
        """The four directions."""
        return tuple(MOVES)

    def reply(self, state: State, action: str, start: int) -> Reply:
        """Move, or not; take the key where it lies."""
        y, x, key = state.place
        dy, dx = MOVES[action]
        cell = (y + dy, x + dx)
        kind = self.cells.get(cell, "#")
        if kind == "#" or (kind == "D" and not key):
            said = "Wall." if kind == "#" else "The door is locked."
            return Reply(f"{said} {self._ways(state.place)}", place=state.place)
        if kind == "E":
            out = cell == self.exits[SIDES.index(self.rows[start]["exit"])]
            return Reply("You are out." if out else "A trap.", won=out, over=True)
        found = not key and cell == self.keys[SIDES.index(self.rows[start]["key"])]
        place = (*cell, int(key or found))
        return Reply(f"{'You take the key. ' if found else ''}{self._ways(place)}", place=place)

    def late(self, state: State) -> bool:
        """With the key."""
        return bool(state.place[2])

    def best_case(self, state: State, gamma: float) -> float:
        """Out with the next move."""
        return 1 - self.cost

    def _ways(self, place: tuple[int, ...]) -> str:
        return self._said[place[0], place[1]]

    def _open(self, cell: tuple[int, int]) -> list[str]:
        return [move for move, (y, x) in MOVES.items() if (cell[0] + y, cell[1] + x) in self.cells]

    def _pair(self, kind: str) -> list[tuple[int, int]]:
        pair = sorted((cell for cell, found in self.cells.items() if found == kind), key=lambda cell: cell[1])
        if len(pair) != 2 or pair[0][1] == pair[1][1]:
            raise ConfigError(f"the maze's plan must have two {kind} in different columns")
        return pair


def double_t(stem: int, arm: int) -> list[str]:
    """The plan of two forks, one behind the other, with a door between them.

    >>> print("\\n".join(double_t(1, 2)))
    E...E
    ##D##
    K...K
    ##S##
    """
    width, floor, wall = 2 * arm + 1, ".", "#"
    fork = floor * (width - 2)
    column = [wall * arm + cell + wall * arm for cell in ["D", *floor * (stem - 1), "S"]]
    return [f"E{fork}E", column[0], f"K{fork}K", *column[1:]]


def _cells(plan: Sequence[str]) -> dict[tuple[int, int], str]:
    """What is not wall, by line and column."""
    if isinstance(plan, str) or not all(isinstance(line, str) for line in plan):
        raise ConfigError("the maze's plan is a list of its lines, each a string: [E.E, '#D#', K.K, '#S#']")
    return {(y, x): kind for y, line in enumerate(plan) for x, kind in enumerate(line) if kind != "#"}

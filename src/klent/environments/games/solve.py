"""The best that can be done in a game, exactly: dynamic programming over all that a player can know."""

from collections.abc import Iterator
from math import fsum

from klent.environments.games.game import Game, State
from klent.errors import ConfigError

TIE = 1e-12  # actions whose values differ by less are equally good


class Solution:
    """V*, Q* and an optimal action of every state of a game, by backward induction from the last turn.

    A state is worked out when it is first asked for, and kept. Actions are tried in the order of what they
    could earn at best, and those that could not earn more than the best so far are passed over.

    Args:
        game: the game.
        gamma: discount per turn, in [0, 1]: the return is the sum of ``gamma^t r_t``, t = 0 at the first turn.
    """

    def __init__(self, game: Game, *, gamma: float = 1.0) -> None:
        if not 0 <= gamma <= 1:
            raise ConfigError(f"gamma is {gamma!r}: a discount lies between 0 and 1")
        self.game = game
        self.gamma = gamma
        self.known: dict[State, tuple[float, str]] = {}

    def start(self) -> float:
        """V* before the game opens: the mean over all starts."""
        states = [self.game.begin(self.game.opening(start)) for start in range(len(self.game.rows))]
        return fsum(self.value(state) for state in states) / len(states)

    def value(self, state: State) -> float:
        """V*: the expected return from here on of a player that does its best."""
        return self._solved(state)[0]

    def action(self, state: State) -> str:
        """An optimal action: of several, the one that could earn most at best, then the first."""
        return self._solved(state)[1]

    def q(self, state: State, action: str) -> float:
        """Q*: the expected return of doing this, and one's best from then on."""
        return fsum(
            chance * (reward + (self.gamma * self.value(after) if after else 0.0))
            for chance, reward, _, after in self.game.outcomes(state, action)
        )

    def optimal(self, state: State) -> list[str]:
        """Every optimal action."""
        best = self.value(state)
        return [action for action in self.game.actions(state) if self.q(state, action) >= best - TIE]

    def _solved(self, state: State) -> tuple[float, str]:
        if state not in self.known:
            self.known[state] = self._search(state)
        return self.known[state]

    def _search(self, state: State) -> tuple[float, str]:
        promises = [(self._promise(state, action), action) for action in self.game.actions(state)]
        promises.sort(key=lambda promise: -promise[0])
        best, chosen = float("-inf"), ""
        for promise, action in promises:
            if promise <= best:
                break
            value = self.q(state, action)
            if value > best:
                best, chosen = value, action
        return best, chosen

    def _promise(self, state: State, action: str) -> float:
        """What an action earns if everything after it goes as well as it could."""
        return sum(
            chance * (reward + (self.gamma * self.game.best_case(after, self.gamma) if after else 0.0))
            for chance, reward, _, after in self.game.outcomes(state, action)
        )


def states(game: Game) -> Iterator[State]:
    """Every state that some player can reach, each once."""
    found = {game.begin(game.opening(start)) for start in range(len(game.rows))}
    waiting = sorted(found)
    while waiting:
        state = waiting.pop()
        yield state
        for action in game.actions(state):
            after = {outcome.state for outcome in game.outcomes(state, action)}
            new = {item for item in after if item is not None} - found
            found |= new
            waiting += sorted(new)

"""Guess who: one of a table of people, found by questions about them."""

from collections.abc import Mapping, Sequence

from klent.environments.games.game import Game, Reply, State, checked_size
from klent.errors import ConfigError

PEOPLE: dict[str, tuple[str, ...]] = {
    "anna": ("glasses", "long", "red"),
    "ben": ("beard", "hat"),
    "clara": ("long", "earrings", "smile"),
    "david": ("beard", "glasses", "old"),
    "emma": ("long", "hat", "smile"),
    "frank": ("hat", "old"),
    "grace": ("earrings", "glasses", "old", "smile"),
    "henry": ("beard", "red", "smile"),
    "iris": ("long", "red", "earrings"),
    "jack": ("smile",),
    "kate": ("long", "glasses", "smile"),
    "leo": ("beard", "old"),
    "maria": ("earrings", "hat", "red"),
    "nick": ("glasses", "hat"),
    "olga": ("earrings", "long", "old"),
    "paul": ("beard", "glasses", "hat", "smile"),
}
"""Each person, and the words that fit."""


class GuessWho(Game):
    """Find out who it is: ask for a word that fits some of the people, or name one of them.

    The answer is ``yes`` or ``no``. A right name wins, a wrong one costs its turn.

    Args:
        people: how many of klent's own table of 16, or a table: the name of each person and the words that
            fit.
        turns: budget of an episode.
        cost: of a turn.
        show: whether the opening has the table.
    """

    def __init__(
        self,
        *,
        people: int | Mapping[str, Sequence[str]] = 16,
        turns: int = 8,
        cost: float = 0.05,
        show: bool = False,
    ) -> None:
        super().__init__(turns=turns, cost=cost)
        self.show = show
        self.people = _checked(people)
        self.names = tuple(self.people)
        self.questions = tuple(dict.fromkeys(word for words in self.people.values() for word in words))
        self.rows = [{"person": name} for name in self.names]
        self._actions = (*self.questions, *self.names)
        self._best: dict[tuple[int, int, float], float] = {}
        self.allowed = f"Ask {', '.join(self.questions)}, or name {', '.join(self.names)}."

    def opening(self, start: int) -> str:
        """The rules, with what may be asked."""
        table = "".join(f" {name}: {' '.join(words) or 'nothing'}." for name, words in self.people.items())
        return f"Who is it? {self.allowed}{table if self.show else ''}"

    def actions(self, state: State) -> Sequence[str]:
        """Every question, and every name."""
        return self._actions

    def reply(self, state: State, action: str, start: int) -> Reply:
        """Yes or no."""
        name = self.names[start]
        if action == name:
            return Reply("yes", won=True, over=True)
        return Reply("yes" if action in self.people[name] else "no")

    def best_case(self, state: State, gamma: float) -> float:
        """The value if every question there could be might be asked: any split of the people in two."""
        people = len(state.starts)
        return self._best_sum(people, state.left, gamma) / people

    def late(self, state: State) -> bool:
        """At most the square root of the people are left."""
        return len(state.starts) ** 2 <= len(self.names)

    def _best_sum(self, people: int, left: int, gamma: float) -> float:
        """:meth:`best_case`, summed over the people: name one of them, or ask for any split."""
        if people == 0 or left == 0:
            return 0.0
        key = people, left, gamma
        if key not in self._best:
            named = 1 + gamma * self._best_sum(people - 1, left - 1, gamma)
            split = (
                gamma * (self._best_sum(yes, left - 1, gamma) + self._best_sum(people - yes, left - 1, gamma))
                for yes in range(1, people // 2 + 1)
            )
            self._best[key] = max(named, *split, named) - people * self.cost
        return self._best[key]


def _checked(people: int | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if isinstance(people, int):
        size = checked_size("people", people, at_least=1, at_most=len(PEOPLE))
        return dict(list(PEOPLE.items())[:size])
    if not isinstance(people, Mapping) or not people:
        raise ConfigError(
            f"people is {people!r}: it must be a number of klent's own people, or a table such as "
            "{anna: [hat, red], ben: [beard]}"
        )
    table = {}
    for name, words in people.items():
        if isinstance(words, str) or not isinstance(words, Sequence):
            raise ConfigError(f"people.{name} is {words!r}: it must be a list of the words that fit")
        for word in (name, *words):
            if not isinstance(word, str) or not word.isalnum() or word != word.casefold():
                raise ConfigError(f"people has {word!r}: write single words in small letters")
        table[name] = tuple(words)
    clash = set(table) & {word for words in table.values() for word in words}
    if clash:
        raise ConfigError(f"people has {sorted(clash)[0]!r} as a name and as a question: rename one")
    return table

"""Wordle on a list of words: each guess is answered letter by letter."""

from collections.abc import Sequence

from klent.environments.games.game import Game, Reply, State, checked_size
from klent.environments.games.words import WORDS
from klent.errors import ConfigError
from klent.kit.text import plural

MARKS = ("miss", "near", "hit")


class Wordle(Game):
    """Guess a word that is drawn from a list, in few turns.

    Every guess must be a word of the list, and each of its letters is answered: ``hit``, it stands at this
    place; ``near``, it stands at another; ``miss``, the word has no more of it.

    Args:
        words: how many of klent's own words of five letters, or a list of words of one length.
        turns: budget of an episode.
        cost: of a turn.
        show: whether the opening lists the words.
    """

    def __init__(
        self,
        *,
        words: int | Sequence[str] = 64,
        turns: int = 6,
        cost: float = 0.05,
        show: bool = False,
    ) -> None:
        super().__init__(turns=turns, cost=cost)
        self.show = show
        self.words = _checked(words)
        self.place_of = {word: number for number, word in enumerate(self.words)}
        self.rows = [{"word": word} for word in self.words]
        self.allowed = f"Answer with one word of {plural(len(self.words[0]), 'letter')} from the list."
        self._known: dict[tuple[str, str], Reply] = {}

    def opening(self, start: int) -> str:
        """The rules."""
        words = f" The list: {' '.join(self.words)}." if self.show else ""
        return (
            f"Guess the word. {self.allowed} hit: the letter is right; near: it belongs elsewhere; "
            f"miss: it is not there.{words}"
        )

    def actions(self, state: State) -> Sequence[str]:
        """Every word of the list."""
        return self.words

    def reply(self, state: State, action: str, start: int) -> Reply:
        """The marks of the guess."""
        pair = action, self.words[start]
        if pair not in self._known:
            won = action == self.words[start]
            self._known[pair] = Reply(" ".join(marks(*pair)), won=won, over=won)
        return self._known[pair]

    def late(self, state: State) -> bool:
        """At most the square root of the words are left."""
        return len(state.starts) ** 2 <= len(self.words)


def marks(guess: str, word: str) -> list[str]:
    """Of each letter of a guess; a letter is near as often as the word has it beyond its hits, from the left.

    >>> " ".join(marks("eerie", "sheep"))
    'near near miss miss miss'
    """
    found = [MARKS[2] if mine == its else MARKS[0] for mine, its in zip(guess, word, strict=True)]
    left = [its for mine, its in zip(guess, word, strict=True) if mine != its]
    for place, letter in enumerate(guess):
        if found[place] == MARKS[0] and letter in left:
            found[place] = MARKS[1]
            left.remove(letter)
    return found


def _checked(words: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(words, int):
        return WORDS[: checked_size("words", words, at_least=1, at_most=len(WORDS))]
    listed = tuple(words) if isinstance(words, Sequence) and not isinstance(words, str) else ()
    if not listed or not all(isinstance(word, str) for word in listed):
        raise ConfigError(f"words is {words!r}: it must be a number of klent's own words, or a list of words")
    wrong = [word for word in listed if not word.isalpha() or word != word.casefold()]
    if wrong:
        raise ConfigError(f"words has {wrong[0]!r}: write words in small letters, and nothing but letters")
    if len({len(word) for word in listed}) > 1:
        raise ConfigError("words has words of several lengths; all must have the same number of letters")
    if len(set(listed)) < len(listed):
        raise ConfigError("words has a word twice; keep one, since each word is one start")
    return listed

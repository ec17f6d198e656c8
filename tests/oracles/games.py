"""The games once more, without klent: played from their start for every history, and every player tried.

A world is a function of the actions so far to what was said to the last of them: (text, reward, over).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

World = Callable[[Sequence[str]], tuple[str, float, bool]]


def maze(lines: Sequence[str], key: str, way: str, turns: int, cost: float) -> World:
    """A maze drawn in characters; its left and right ``K`` and ``E`` by column."""
    drawn = {(row, column): sign for row, line in enumerate(lines) for column, sign in enumerate(line)}
    sides = {
        sign: sorted((at for at, found in drawn.items() if found == sign), key=lambda at: at[1])
        for sign in "KE"
    }
    goal = {"left": 0, "right": -1}
    key_at, exit_at = sides["K"][goal[key]], sides["E"][goal[way]]
    start = next(at for at, sign in drawn.items() if sign == "S")

    def play(actions: Sequence[str]) -> tuple[str, float, bool]:
        at, has_key, said = start, False, ""
        for action in actions:
            row, column = at
            to = {
                "up": (row - 1, column),
                "down": (row + 1, column),
                "left": (row, column - 1),
                "right": (row, column + 1),
            }[action]
            sign = drawn.get(to, "#")
            if sign == "#":
                said = "wall"
            elif sign == "D" and not has_key:
                said = "locked"
            elif sign == "E":
                return ("out" if to == exit_at else "trap"), (to == exit_at) - cost, True
            else:
                at, said = to, f"at {to}"
                if to == key_at and not has_key:
                    has_key, said = True, "key"
        return said, -cost, len(actions) == turns

    return play


def wordle(word: str, turns: int, cost: float) -> World:
    """The word's answers."""

    def play(guesses: Sequence[str]) -> tuple[str, float, bool]:
        won = guesses[-1] == word
        return marks(guesses[-1], word), won - cost, won or len(guesses) == turns

    return play


def marks(guess: str, word: str) -> str:
    """By counting: of a letter, as many marks as both words have of it; hits first, then from the left."""
    said = []
    for place, letter in enumerate(guess):
        if word[place] == letter:
            said.append("hit")
            continue
        hits = sum(a == b == letter for a, b in zip(guess, word, strict=True))
        earlier = sum(guess[i] == letter != word[i] for i in range(place))
        said.append("near" if earlier < word.count(letter) - hits else "miss")
    return " ".join(said)


def person(table: Mapping[str, Sequence[str]], name: str, turns: int, cost: float) -> World:
    """The person's answers."""

    def play(asked: Sequence[str]) -> tuple[str, float, bool]:
        won = asked[-1] == name
        yes = won or asked[-1] in table[name]
        return ("yes" if yes else "no"), won - cost, won or len(asked) == turns

    return play


def best_return(
    worlds: Sequence[World], actions: Sequence[str], gamma: float = 1.0, before: tuple[str, ...] = ()
) -> float:
    """The most that a player can expect after these actions, who cannot tell the worlds apart otherwise."""
    return max(return_of(action, worlds, actions, gamma, before) for action in actions)


def return_of(
    action: str, worlds: Sequence[World], actions: Sequence[str], gamma: float, before: tuple[str, ...]
) -> float:
    """Of one action, and the best from then on: an average over the worlds, which part by what they say."""
    total, parted = 0.0, {}
    for world in worlds:
        said, reward, over = world([*before, action])
        total += reward
        if not over:
            parted.setdefault(said, []).append(world)
    for same in parted.values():
        total += gamma * len(same) * best_return(same, actions, gamma, (*before, action))
    return total / len(worlds)


def best_of_all_players(worlds: Sequence[World], actions: Sequence[str], turns: int, gamma: float) -> float:
    """The same, by playing every deterministic player that there is: one action for each history."""
    histories = [()]
    for history in histories:
        if len(history) < turns - 1:
            for action in actions:
                words = [*(word for word, _ in history), action]
                said = {world(words)[0] for world in worlds if not world(words)[2]}
                histories += [(*history, (action, one)) for one in sorted(said)]
    best = float("-inf")
    for chosen in itertools.product(actions, repeat=len(histories)):
        player = dict(zip(histories, chosen, strict=True))
        best = max(best, sum(_play(world, player, gamma) for world in worlds) / len(worlds))
    return best


def _play(world: World, player: Mapping[tuple[tuple[str, str], ...], str], gamma: float) -> float:
    total, weight, history, over = 0.0, 1.0, (), False
    while not over:
        action = player[history]
        said, reward, over = world([*(word for word, _ in history), action])
        total += weight * reward
        weight *= gamma
        history = (*history, (action, said))
    return total

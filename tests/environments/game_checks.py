"""What must hold of the games, as functions of the package, so that mutants of it can be checked too."""

import itertools
import pickle
from collections.abc import Callable
from types import ModuleType

import pytest
from oracles import games as oracle

SIDES = list(itertools.product(("left", "right"), repeat=2))
T = ["E.E", "#D#", "K.K", "#S#"]
WIDE = ["#E.##", "##DE#", "K..K#", "##S##"]  # an exit beside the door, the other round a corner
WORDS = ["allee", "eagle", "eerie", "lease", "legal", "sheep"]
TABLE = {"ann": ["hat"], "bob": ["hat", "old"], "cid": ["old"], "dee": [], "eve": ["red", "hat"]}


def check_marks(games: ModuleType) -> None:
    """Every guess against every word of three letters and four places, and published answers."""
    marks = games.wordle.marks
    words = ["".join(letters) for letters in itertools.product("abc", repeat=4)]
    for guess, word in itertools.product(words, words):
        assert " ".join(marks(guess, word)) == oracle.marks(guess, word), (guess, word)
    for word, said in {
        "abide": "miss miss near miss near",
        "erase": "near miss near near miss",
        "steal": "hit miss hit miss miss",
        "crepe": "miss near hit near miss",
    }.items():
        assert " ".join(marks("speed", word)) == said


def check_maze(games: ModuleType) -> None:
    """Values of the maze are those of the best of all players."""
    for plan, turns, cost, gamma in ((T, 6, 0.05, 1.0), (WIDE, 6, 0.125, 0.9), (T, 5, 0.1, 1.0)):
        worlds = [oracle.maze(plan, *sides, turns, cost) for sides in SIDES]
        game = games.Maze(plan=plan, turns=turns, cost=cost)
        exact = sum(oracle.best_return([world], MOVES, gamma) for world in worlds) / 4
        assert games.Solution(game, gamma=gamma).start() == pytest.approx(exact, abs=1e-12)
    worlds = [oracle.maze(T, *sides, 6, 0.02) for sides in SIDES]
    untold = games.Solution(games.Maze(turns=6, cost=0.02, note=False)).start()
    assert untold == pytest.approx(oracle.best_return(worlds, MOVES), abs=1e-12)
    check_every_q(games, games.Maze(turns=5), worlds=[oracle.maze(T, *SIDES[1], 5, 0.05)], start=1)


MOVES = ["up", "down", "left", "right"]


def check_wordle(games: ModuleType) -> None:
    """Values of Wordle are those of the best of all players; short lists, and words with doubled letters."""
    for words, turns, cost, gamma in (
        (WORDS, 4, 0.05, 1.0),
        (WORDS, 3, 0.2, 0.8),
        (WORDS, 2, 0.05, 1.0),
        (["aab", "aba", "baa", "abb", "bbb"], 3, 0.1, 0.9),
        (["aab"], 1, 0.1, 1.0),
    ):
        worlds = [oracle.wordle(word, turns, cost) for word in words]
        solution = games.Solution(games.Wordle(words=words, turns=turns, cost=cost), gamma=gamma)
        assert solution.start() == pytest.approx(oracle.best_return(worlds, words, gamma), abs=1e-12)
    check_every_q(
        games, games.Wordle(words=WORDS, turns=3), worlds=[oracle.wordle(word, 3, 0.05) for word in WORDS]
    )


def check_guess_who(games: ModuleType) -> None:
    """Values of guessing a person are those of the best of all players."""
    for people, turns, cost, gamma in (
        (5, 4, 0.05, 1.0),
        (5, 3, 0.1, 0.7),
        (3, 4, 0.0, 0.9),
        (4, 4, 1.0, 1.0),
    ):
        table = dict(list(TABLE.items())[:people])
        game = games.GuessWho(people=table, turns=turns, cost=cost)
        worlds = [oracle.person(table, name, turns, cost) for name in table]
        exact = oracle.best_return(worlds, game.actions(None), gamma)
        assert games.Solution(game, gamma=gamma).start() == pytest.approx(exact, abs=1e-12)
    check_every_q(
        games,
        games.GuessWho(people=TABLE, turns=3),
        worlds=[oracle.person(TABLE, name, 3, 0.05) for name in TABLE],
    )


def check_every_q(games: ModuleType, game, *, worlds: list[oracle.World], start: int = 0) -> None:
    """Q* of every action after every history of one action, against the oracle's."""
    solution, actions = games.Solution(game, gamma=0.95), list(game.actions(game.begin(game.opening(start))))
    for first, second in itertools.product(actions, actions):
        opening = game.opening(start)
        after = game.begin(opening)
        assert solution.q(after, first) == pytest.approx(
            oracle.return_of(first, worlds, actions, 0.95, ()), abs=1e-12
        )
        said = worlds[0]([first])
        if said[2]:
            continue
        same = [world for world in worlds if world([first]) == said]
        game.reset(game.rows[start], 0)
        state = game.read([opening, first, game.step(first).observation])
        exact = oracle.return_of(second, same, actions, 0.95, (first,))
        assert solution.q(state, second) == pytest.approx(exact, abs=1e-12)


def check_optimal_player(games: ModuleType) -> None:
    """Played from every start, it earns V*, which no other player does; a game's own state is its history's."""
    for game in (games.Maze(), games.Maze(note=False), games.Wordle(words=12), games.GuessWho(people=7)):
        solution = games.Solution(game)
        best = played(game, games.players.Optimal(solution))
        assert best == pytest.approx(solution.start(), abs=1e-12)
        for name in ("random", "early", "late"):
            player = games.players.POLICIES[name](game, 0)
            assert sum(played(game, player) for _ in range(4)) / 4 < best - 0.01
    discounted = games.Solution(games.Maze(), gamma=0.9)
    assert played(games.Maze(), games.players.Optimal(discounted), 0.9) == pytest.approx(
        discounted.start(), abs=1e-12
    )


def played(game, player: Callable[[list[str]], str], gamma: float = 1.0) -> float:
    """Mean return over all starts."""
    total = 0.0
    for row in game.rows:
        history, done, weight = [game.reset(row, 0)], False, 1.0
        while not done:
            action = player(history)
            said, reward, done, _ = game.step(action)
            total += weight * reward
            weight *= gamma
            history += [action, said]
    return total / len(game.rows)


def check_budget(games: ModuleType) -> None:
    """Exactly so many turns, and a turn that cannot be read is one of them and changes nothing else."""
    for game in (games.Maze(turns=3), games.Wordle(turns=3), games.GuessWho(turns=3)):
        game.reset({}, 5)
        steps = [game.step(word) for word in ("", "left, no right", "\x1b[31m" * 9)]
        assert [step.done for step in steps] == [False, False, True]
        assert [step.reward for step in steps] == [-game.cost] * 3
        assert all(step.observation.startswith(f"Not understood. {game.allowed}") for step in steps)
        with pytest.raises(games.game.RunError, match="call reset first"):
            game.step("up")
    game = games.Maze()
    game.reset({"key": "left", "exit": "right"}, 0)
    copy = None
    for action in ("up", "up", "what?", " LEFT. ", "up", "right", "up", "up"):
        assert not game.step(action).done
        copy = pickle.loads(pickle.dumps(game)) if games.__name__.startswith("klent") else game
    assert copy.step("right")[:3] == ("You are out.", 1 - 0.05, True)


def check_bound(games: ModuleType) -> None:
    """No state is worth more than its best case, which three questions reach that tell eight people apart."""
    bits = itertools.product((0, 1), repeat=3)
    people = {f"p{n}": [f"q{i}" for i in range(3) if bit[i]] for n, bit in enumerate(bits)}
    told_apart = games.GuessWho(people=people)
    for game, limit in ((games.Maze(turns=6), 99), (games.Wordle(words=12), 99), (told_apart, 20)):
        for gamma in (1.0, 0.6):
            solution = games.Solution(game, gamma=gamma)
            for state in itertools.islice(games.states(game), limit):
                assert solution.value(state) <= game.best_case(state, gamma) + 1e-12
            start = game.begin(game.opening(0))
            assert solution.value(start) <= game.best_case(start, gamma) + 1e-12
    assert games.Solution(told_apart).start() >= 1 - 4 * 0.05 - 1e-12
    assert told_apart.best_case(told_apart.begin(told_apart.opening(0)), 1.0) >= 1 - 4 * 0.05 - 1e-12


CHECKS = (
    check_marks,
    check_budget,
    check_bound,
    check_guess_who,
    check_wordle,
    check_optimal_player,
    check_maze,
)

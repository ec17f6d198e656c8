"""The games: their values against every player there is, their rules, and what they refuse."""

import itertools
import random
from importlib import import_module

import pytest
from environments.game_checks import CHECKS, MOVES, WORDS, T
from oracles import games as oracle

from klent.environments import NAMED, Environment, games
from klent.environments.games import GuessWho, Maze, Solution, Wordle, guess_who, players, states, words
from klent.errors import ConfigError, DataError, RunError

assert players  # the checks find it in the package


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_of_the_games(check):
    check(games)


def test_the_oracle_of_histories_is_the_best_of_all_players():
    """Each player is played, every one: 3^7 of them for three words and two turns."""
    listed = ["aab", "aba", "bbb"]
    for gamma in (1.0, 0.5):
        worlds = [oracle.wordle(word, 2, 0.05) for word in listed]
        every = oracle.best_of_all_players(worlds, listed, 2, gamma)
        assert oracle.best_return(worlds, listed, gamma) == pytest.approx(every, abs=1e-12)
        assert Solution(Wordle(words=listed, turns=2), gamma=gamma).start() == pytest.approx(every, abs=1e-12)


@pytest.mark.parametrize("name", ["maze", "wordle", "guess_who"])
def test_named_games_are_environments_with_defaults(name):
    module, _, attribute = NAMED[name].partition(":")
    game: Environment = getattr(import_module(module), attribute)()
    assert isinstance(game, games.Game)
    assert isinstance(game.reset({}, 0), str)


def every_game():
    return [Maze(), Maze(stem=2, arm=2), Maze(note=False), Wordle(words=32), GuessWho(), GuessWho(people=5)]


@pytest.mark.parametrize("game", every_game(), ids=lambda game: f"{type(game).__name__} {len(game.rows)}")
def test_an_episode_is_decided_by_row_and_seed(game):
    fresh = next(other for other in every_game() if vars(other) == vars(game))
    for seed in range(20):
        dice = random.Random(seed)
        opening = game.reset({}, seed)
        assert fresh.reset(game.row, seed + 1) == opening
        state, done, history = game.begin(opening), False, [opening]
        while not done:
            action = dice.choice(game.actions(state))
            chance = {o.text: o for o in game.outcomes(state, action)}
            assert sum(o.probability for o in chance.values()) == pytest.approx(1, abs=1e-12)
            step = game.step(action)
            assert fresh.step(action) == step
            known = chance[step.observation]
            assert (step.reward, step.done) == (known.reward, known.state is None)
            history += [action, step.observation]
            state, done = known.state, step.done
            assert done or game.read(history) == state
        with pytest.raises(DataError, match="episode is over"):
            game.read(history)


def test_seeds_draw_every_start_alike():
    game = GuessWho()
    drawn = [game.reset({}, seed) and game.row["person"] for seed in range(1600)]
    assert all(60 <= drawn.count(name) <= 140 for name in game.people)


def test_half_a_row_leaves_the_rest_to_the_seed():
    game = Maze()
    rows = {
        tuple((game.reset({"key": "left", "other": 1}, seed), *game.row.values())[1:]) for seed in range(40)
    }
    assert rows == {("left", "left"), ("left", "right")}


def test_the_maze_needs_the_note_and_a_memory():
    """Without the note half of all exits are traps, and later observations do not tell the starts apart."""
    told, untold = Solution(Maze()).start(), Solution(Maze(note=False)).start()
    assert told == pytest.approx(1 - 6 * 0.05, abs=1e-12)
    assert untold == pytest.approx(0.5 - 7 * 0.05, abs=1e-12)
    heard = set()
    game = Maze()
    for exit_side in ("left", "right"):
        game.reset({"key": "left", "exit": exit_side}, 0)
        heard.add(tuple(game.step(move).observation for move in ("up", "left", "right", "up", "up")))
    assert len(heard) == 1


def test_wider_mazes_take_longer():
    for stem, arm in ((1, 1), (2, 1), (2, 2), (1, 3)):
        value = Solution(Maze(stem=stem, arm=arm, turns=14)).start()
        assert value == pytest.approx(1 - 0.05 * (stem + 3 * arm + 2), abs=1e-12)


def test_every_state_of_a_small_maze():
    """Cells without and with the key that can be reached in time, counted by walking."""
    game, found = Maze(turns=5), set()
    for start, *moves in itertools.product(range(4), *[MOVES] * 4):
        opening = game.reset(game.rows[start], 0)
        state = game.begin(opening)
        found.add(state)
        for move in moves:
            step = game.step(move)
            if step.done:
                break
            state = game.follow(state, move, step.observation)
            found.add(state)
    assert found == set(states(game))
    assert len(found) == 80


def test_the_best_guesses_are_all_named():
    solution = Solution(Wordle(words=WORDS, turns=3))
    state = solution.game.begin(solution.game.opening(0))
    values = {word: solution.q(state, word) for word in WORDS}
    assert solution.action(state) in solution.optimal(state)
    assert set(solution.optimal(state)) == {w for w, v in values.items() if v > max(values.values()) - 1e-12}


def test_the_words_and_the_people():
    assert len(set(words.WORDS)) == len(words.WORDS) == 264
    assert all(
        len(word) == 5 and word.isascii() and word.islower() and word.isalpha() for word in words.WORDS
    )
    assert any(len(set(word)) < 5 for word in words.WORDS[:64])
    assert len({frozenset(fits) for fits in guess_who.PEOPLE.values()}) == len(guess_who.PEOPLE) == 16
    assert GuessWho(show=True).opening(0).count(":") == 16
    assert Wordle(show=True, words=["ab", "ba"]).opening(0).endswith("The list: ab ba.")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Maze(turns=0), "turns is 0: it must be a whole number, at least 1"),
        (lambda: Maze(stem=True), "stem is True"),
        (lambda: Maze(cost=float("nan")), "cost is nan; the cost of a turn must be a number from 0 to 1"),
        (lambda: Maze(cost="1"), "cost is '1'"),
        (lambda: Maze(plan="E.E"), "a list of its lines"),
        (lambda: Maze(plan=[*T, "S"]), "has 2 starts: mark one cell with S"),
        (lambda: Maze(plan=["E.E", "#S#"]), "two K"),
        (lambda: Maze(plan=["EKE", "#KS"]), "in different columns"),
        (lambda: Wordle(words=1000), "at most 264"),
        (lambda: Wordle(words=False), "words is False"),
        (lambda: Wordle(words=[]), "a list of words"),
        (lambda: Wordle(words=3.5), "words is 3.5"),
        (lambda: Wordle(words={"ab": 1}), "a list of words"),
        (lambda: Wordle(words=["ab", "Ba"]), "'Ba'"),
        (lambda: Wordle(words=["ab", "abc"]), "several lengths"),
        (lambda: Wordle(words=["ab", "ab"]), "twice"),
        (lambda: GuessWho(people=17), "at most 16"),
        (lambda: GuessWho(people={}), "a table such as"),
        (lambda: GuessWho(people={"ann": "hat"}), "people.ann is 'hat'"),
        (lambda: GuessWho(people={"ann": ["big hat"]}), "'big hat'"),
        (lambda: GuessWho(people={"ann": ["bob"], "bob": []}), "as a name and as a question"),
        (lambda: Solution(Maze(), gamma=1.5), "gamma is 1.5"),
    ],
)
def test_settings_that_make_no_game(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_no_episode_has():
    with pytest.raises(
        DataError, match=r"no episode starts from {'key': 'under'}. Possible starts: key: left, right"
    ):
        Maze().reset({"key": "under"}, 0)
    for call in (lambda: Maze().step("up"), lambda: Maze().row):
        with pytest.raises(RunError, match="call reset first"):
            call()
    game = Maze()
    with pytest.raises(DataError, match="does not open with"):
        game.read(["Hello"])
    with pytest.raises(DataError, match="cannot have said"):
        game.read([game.opening(0), "up", "Ways: none."])

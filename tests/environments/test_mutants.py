"""The tests tested: each mutant is one plausible mistake in a game or in its solution, and a check notices."""

# ruff: noqa: E501 - a table is read across, one mutant a line

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from environments import game_checks as check

from klent.environments import games

WHERE = {
    "solve.py": (check.check_guess_who, check.check_wordle, check.check_maze),
    "game.py": (check.check_budget, check.check_guess_who, check.check_wordle, check.check_maze),
    "maze.py": (check.check_budget, check.check_maze),
    "wordle.py": (check.check_marks, check.check_wordle),
    "guess_who.py": (check.check_bound, check.check_guess_who),
    "players.py": (check.check_optimal_player,),
}
"""The checks that a file's mutants face."""


class Mutant(NamedTuple):
    mistake: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant("the reward is discounted too", "solve.py", "chance * (reward + (self.gamma * self.value", "chance * self.gamma * (reward + (self.value"),
    Mutant("no discount", "solve.py", "self.gamma * self.value(after)", "self.value(after)"),
    Mutant("no discount in the bound", "solve.py", "self.gamma * self.game.best_case", "-self.game.best_case"),
    Mutant("the discount squared", "solve.py", "self.gamma * self.value(after)", "self.gamma**2 * self.value(after)"),
    Mutant("outcomes alike", "solve.py", "return fsum(\n            chance *", "return fsum(\n            1 / len(self.game.outcomes(state, action)) *"),
    Mutant("starts are not averaged", "solve.py", " / len(states)", ""),
    Mutant("the worst action", "solve.py", "if value > best", "if value < best or best < -9"),
    Mutant("stops at the first action", "solve.py", "if promise <= best", "if chosen"),
    Mutant("worst promise first", "solve.py", "-promise[0]", "promise[0]"),
    Mutant("one turn more", "game.py", "state.left == 1", "state.left == 0"),
    Mutant("one turn less", "game.py", "state.left == 1", "state.left <= 2"),
    Mutant("turns are not counted", "game.py", "state.left - 1, reply.place", "state.left, reply.place"),
    Mutant("a win is free", "game.py", "float(reply.won) - self.cost", "(1.0 if reply.won else -self.cost)"),
    Mutant("the last turn is free", "game.py", "float(reply.won) - self.cost", "float(reply.won) - self.cost * (not last)"),
    Mutant("a win at the last turn is none", "game.py", "float(reply.won)", "float(reply.won and state.left > 1)"),
    Mutant("answers alike", "game.py", "probability=len(starts) / len(state.starts)", "probability=1 / len(state.starts)"),
    Mutant("the answer is forgotten", "game.py", "State(tuple(starts), state.left", "State(state.starts, state.left"),
    Mutant("the opening is not read", "game.py", "setdefault(self.opening(start), [])", "setdefault(self.opening(0), [])"),
    Mutant("an unreadable word moves home", "game.py", "self.allowed}\", place=state.place", "self.allowed}\", place=self.home"),
    Mutant("the bound forgets the win", "game.py", "return (win + ", "return (0 + "),
    Mutant("the first of several words", "game.py", "if len(words) == 1", "if words"),
    Mutant("capitals are other words", "game.py", "words[0].casefold()", "words[0]"),
    Mutant("doubled letters", "wordle.py", "            left.remove(letter)\n", ""),
    Mutant("hits are near elsewhere too", "wordle.py", "left = [its for mine, its in zip(guess, word, strict=True) if mine != its]", "left = list(word)"),
    Mutant("near from the right", "wordle.py", "for place, letter in enumerate(guess)", "for place, letter in reversed(list(enumerate(guess)))"),
    Mutant("hits become near", "wordle.py", "if found[place] == MARKS[0] and", "if"),
    Mutant("the guess wins anyway", "wordle.py", "won = action == self.words[start]", "won = 'miss' not in marks(*pair)"),
    Mutant("marks the wrong way round", "wordle.py", "marks(*pair))", "marks(*pair[::-1]))"),
    Mutant("doors are open", "maze.py", 'or (kind == "D" and not key)', ""),
    Mutant("doors are walls", "maze.py", 'or (kind == "D" and not key)', 'or kind == "D"'),
    Mutant("a key on both sides", "maze.py", 'cell == self.keys[SIDES.index(self.rows[start]["key"])]', "cell in self.keys"),
    Mutant("the key's other side", "maze.py", 'self.keys[SIDES.index(self.rows[start]["key"])]', 'self.keys[1 - SIDES.index(self.rows[start]["key"])]'),
    Mutant("two exits", "maze.py", 'cell == self.exits[SIDES.index(self.rows[start]["exit"])]', "cell in self.exits"),
    Mutant("traps let go", "maze.py", "won=out, over=True", "won=out, over=out"),
    Mutant("the key is lost", "maze.py", "int(key or found)", "int(found)"),
    Mutant("the key is told of, and not taken", "maze.py", "int(key or found)", "int(key)"),
    Mutant("the note is always there", "maze.py", "if self.note else", "if True else"),
    Mutant("the note names the key only", "maze.py", ", the exit is {row['exit']}", ""),
    Mutant("left is up", "maze.py", '"left": (0, -1)', '"left": (-1, 0)'),
    Mutant("sides by line", "maze.py", "key=lambda cell: cell[1]", "key=lambda cell: -cell[1]"),
    Mutant("walls cost a move", "maze.py", 'Reply(f"{said} {self._ways(state.place)}", place=state.place)', 'Reply(f"{said} {self._ways(state.place)}", place=self.home)'),
    Mutant("no is yes", "guess_who.py", 'else "no"', 'else "yes"'),
    Mutant("a right name does not end it", "guess_who.py", "won=True, over=True", "won=True"),
    Mutant("a right name does not win", "guess_who.py", "won=True, over=True", "over=True"),
    Mutant("the bound never splits", "guess_who.py", "max(named, *split, named)", "named"),
    Mutant("the bound's splits are uneven", "guess_who.py", "range(1, people // 2 + 1)", "range(1, min(2, people // 2 + 1))"),
    Mutant("the player does its second best", "players.py", "return self.solution.action(", "return min(self.solution.game.actions(None), key=lambda a: self.solution.q(self.solution.game.read(history), a)) or ("),
    Mutant("good at both halves", "players.py", "return self.optimal(history) if good else self.random(history)", "return self.optimal(history)"),
]  # fmt: skip


@pytest.fixture
def mutated(tmp_path, monkeypatch):
    """The package with one string of it replaced, imported under a name of its own."""
    names: list[str] = []

    def load(mutant: Mutant):
        name = f"mutant_games_{len(names)}_{tmp_path.name.replace('-', '_')}"
        names.append(name)
        folder = tmp_path / name
        shutil.copytree(Path(games.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in folder.glob("*.py"):
            source = file.read_text().replace("klent.environments.games", name)
            if file.name == mutant.file:
                assert source.count(mutant.old) == 1, "the source has changed: bring the mutant up to date"
                source = source.replace(mutant.old, mutant.new)
            file.write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        module = import_module(name)
        import_module(f"{name}.players")
        return module

    yield load
    for name in [module for module in sys.modules if module.startswith(tuple(names or ["-"]))]:
        del sys.modules[name]


def noticed(package, file: str) -> bool:
    for one in WHERE[file]:
        try:
            one(package)
        except Exception as error:  # a mutant may fail in any way
            return bool(error) or True
        except pytest.fail.Exception:
            return True
    return False


def test_the_package_as_it_is_passes(mutated):
    package = mutated(Mutant("none", "", "", ""))
    assert not any(noticed(package, file) for file in ("wordle.py", "guess_who.py"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.mistake}")
def test_mutant_is_killed(mutated, mutant):
    assert noticed(mutated(mutant), mutant.file)

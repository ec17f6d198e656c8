"""Games that can be solved exactly: a maze, Wordle, and guessing a person."""

from klent.environments.games.game import Game, Outcome, State
from klent.environments.games.guess_who import GuessWho
from klent.environments.games.maze import Maze
from klent.environments.games.solve import Solution, states
from klent.environments.games.wordle import Wordle

__all__ = ["Game", "GuessWho", "Maze", "Outcome", "Solution", "State", "Wordle", "states"]

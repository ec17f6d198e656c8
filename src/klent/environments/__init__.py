"""Worlds that answer: the protocol of an environment, and those that klent knows by name."""

from klent.environments.environment import Environment, Step

NAMED: dict[str, str] = {
    "maze": "klent.environments.games.maze:Maze",
    "wordle": "klent.environments.games.wordle:Wordle",
    "guess_who": "klent.environments.games.guess_who:GuessWho",
}
"""What a recipe may name short, and the class that it stands for."""

__all__ = ["NAMED", "Environment", "Step"]

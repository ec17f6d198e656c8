"""Worlds that answer: the protocol of an environment, and those that klent knows by name."""

from klent.environments.environment import Environment, Step
from klent.kit.names import nearest

NAMED: dict[str, str] = {
    "maze": "klent.environments.games.maze:Maze",
    "wordle": "klent.environments.games.wordle:Wordle",
    "guess_who": "klent.environments.games.guess_who:GuessWho",
    "tools": "klent.environments.tools:Tools",
    "gymnasium": "klent.environments.adapters:Gymnasium",
    "textarena": "klent.environments.adapters:TextArena",
    "textworld": "klent.environments.adapters:TextWorld",
    "verifiers": "klent.environments.verifiers:Verifiers",
}
"""What a recipe may name short, and the class that it stands for."""


def find_environment(name: str) -> str:
    """``path/to/file.py:Class`` or ``package.module:Class`` of an environment; nothing is imported.

    Raises:
        ValueError: an unknown name, or no name of a class.

    Examples:
        >>> find_environment("maze"), find_environment("games/own.py:Nim")
        ('klent.environments.games.maze:Maze', 'games/own.py:Nim')
    """
    if name in NAMED:
        return NAMED[name]
    source, _, attribute = name.rpartition(":")
    fix = "your own is path/to/file.py:Class or package.module:Class"
    if ":" not in name and not name.endswith(".py"):
        raise ValueError(
            f"there is no environment {name!r}{nearest(name, NAMED)}; there are {', '.join(NAMED)}; {fix}"
        )
    is_module = all(part.isidentifier() for part in source.split("."))
    if not source or not attribute.isidentifier() or not (source.endswith(".py") or is_module):
        raise ValueError(f"{name!r} names no class; {fix}")
    return name


__all__ = ["NAMED", "Environment", "Step", "find_environment"]

"""Episodes on file: one line of JSON each, what was read, done and earned, turn by turn."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from klent.environments.environment import Environment, Observation
from klent.io.files import write_atomic


class Turn(TypedDict):
    """What was read, what was done, and what it earned."""

    observation: Observation
    action: str
    reward: float


Played = TypedDict("Played", {"start": dict[str, object], "seed": int, "turns": list[Turn], "return": float})
"""An episode: ``reset(start, seed)`` begins it again, and its actions play it; ``return`` is undiscounted."""


def play_episode(
    environment: Environment,
    player: Callable[[Sequence[str]], str],
    row: Mapping[str, object],
    seed: int,
    *,
    said: Callable[[Observation], None] = lambda observation: None,
) -> Played:
    """Play one episode to its end.

    Args:
        environment: the game.
        player: the history to the next action; the history is the texts read and written so far, in turns.
        row, seed: what the episode is reset with.
        said: told of everything the environment says, the last word included.
    """
    observation = environment.reset(row, seed)
    said(observation)
    history, turns, done = [as_text(observation)], list[Turn](), False
    while not done:
        action = player(history)
        step = environment.step(action)
        turns.append(Turn(observation=observation, action=action, reward=step.reward))
        observation, done = step.observation, step.done
        said(observation)
        history += [action, as_text(observation)]
    start = getattr(environment, "row", row)  # a game says the whole of it, also what the seed drew
    return {"start": dict(start), "seed": seed, "turns": turns, "return": sum(t["reward"] for t in turns)}


def as_text(observation: Observation) -> str:
    """What an environment said, messages one below the other."""
    if isinstance(observation, str):
        return observation
    return "\n".join(message["content"] for message in observation)


def write_episodes(path: Path, episodes: Iterable[Played]) -> None:
    """Write a log, whole or not at all."""
    write_atomic(path, "".join(json.dumps(episode, ensure_ascii=False) + "\n" for episode in episodes))

"""The worlds of the study of arms: a game, logs of players that are good at half of it, and a small model.

The model is a Llama of 0.1 million parameters with a token a word (and the space before it), which has read nothing.
Half of the episodes of a log are by a player that is optimal in the first half of the game and random after it, half
by one that is random until then and optimal after it. `maze, halves` is without the episodes that are as good as the
best, or were cut by the budget of turns: only joining the halves gives one.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from textworld_game import Walked
from word_llama import make_word_llama

from klent.environments.episode_log import Played, play_episode
from klent.environments.games import Game, GuessWho, Maze, Solution, Wordle
from klent.environments.games.players import POLICIES
from klent.models.load import LoadedModel
from klent.rollout.engine import Engine
from klent.streams.prompt import Prompt


class World(NamedTuple):
    """A game as the study plays it.

    Attributes:
        env: as recipes name it.
        make: the class of it.
        config: what both are given.
        joined: whether no episode of the log may be as good as the best.
    """

    env: str
    make: Callable[..., Game]
    config: dict[str, int]
    joined: bool = False


WORLDS = {
    "guess_who": World("guess_who", GuessWho, {"people": 8, "turns": 6}),
    "textworld": World(f"{Path(__file__).with_name('textworld_game.py')}:Walked", Walked, {"turns": 8}),
    "maze": World("maze", Maze, {"turns": 12}),
    "maze, halves": World("maze", Maze, {"turns": 12}, joined=True),
    "wordle": World("wordle", Wordle, {"words": 16, "turns": 5}),
}


def log(world: World, seed: int, count: int) -> list[Played]:
    """As many episodes of both players."""
    game = world.make(**world.config)
    solved = Solution(game)
    kept: list[Played] = []
    for half, name in enumerate(("early", "late"), 1):
        player, number = POLICIES[name](game, seed), 0
        while len(kept) < half * count // 2:
            played = play_episode(game, player, {}, 1000 * seed + number)
            number += 1
            best = solved.value(game.begin(str(played["turns"][0]["observation"])))
            cut = len(played["turns"]) == game.turns
            if not world.joined or (played["return"] < best - 1e-9 and not cut):
                kept.append(played)
    return kept


def make_model(world: World, episodes: Sequence[Played], folder: Path, seed: int) -> None:
    """A small model that has read nothing, with a token for each word of the log and of the game's actions."""
    game = world.make(**world.config)
    texts = [game.opening(start) for start in range(len(game.rows))]
    texts += [f"Not understood. {game.allowed} No turns left."]
    texts += [text for e in episodes for t in e["turns"] for text in (str(t["observation"]), t["action"])]
    make_word_llama(texts, folder, seed, word=r" ?\w+| ?[^\w\s]|\s+", longest=1024)


def play(world: World, engine: Engine, loaded: LoadedModel, episodes: int, seed: int) -> float:
    """Mean return of as many episodes, from the game's starts in turn, side by side."""
    games = [world.make(**world.config) for _ in range(episodes)]
    encode = loaded.tokenizer
    rows = games[0].rows
    ids = [
        list(encode(game.reset(rows[number % len(rows)], 0)).input_ids) for number, game in enumerate(games)
    ]
    earned, going = [0.0] * episodes, list(range(episodes))
    for turn in range(games[0].turns):
        asked = [Prompt(f"game/{number}", "", token_ids=ids[number]) for number in going]
        answers = engine.generate(asked, group_size=1, seed=1000 * seed + turn)
        still = []
        for number, answer in zip(going, answers, strict=True):
            step = games[number].step(answer.text)
            earned[number] += step.reward
            ids[number] += [*answer.tokens.tolist(), *encode(str(step.observation)).input_ids]
            if not step.done:
                still.append(number)
        going = still
        if not going:
            break
    return statistics.fmean(earned)

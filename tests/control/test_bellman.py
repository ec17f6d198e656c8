"""Bellman targets of logged play against the exact values of a game, state by state and token by token."""

import functools
import itertools
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from tiny import END, TURN_END, tiny_model, tiny_tokenizer

from klent.control.bellman import BellmanTargets, Scale
from klent.environments.episode_log import Played, play_episode, write_episodes
from klent.environments.games.game import State
from klent.environments.games.maze import Maze
from klent.environments.games.players import POLICIES
from klent.environments.games.solve import Solution
from klent.models.load import LoadedModel
from klent.rollout.trajectory_engine import TrajectoryEngine
from klent.streams.batch import Batch, make_batch
from klent.streams.episode import Episode
from klent.tasks import load_task

TURNS = 30  # so many that the last is never near on a good way
GAME = Maze(turns=TURNS)
SOLVED = Solution(GAME)
LONGEST = 12


def states(episode: Played) -> list[State]:
    """What each turn was played in."""
    turns = episode["turns"]
    found = [GAME.begin(str(turns[0]["observation"]))]
    for before, after in itertools.pairwise(turns):
        state = GAME.follow(found[-1], before["action"], str(after["observation"]))
        assert state is not None
        found.append(state)
    return found


@functools.cache
def halves() -> list[Played]:
    """Logs of players that are good at one half, without the episodes that are good as a whole."""
    kept = []
    for name in ("early", "late"):
        player = POLICIES[name](GAME, 5)
        for seed in range(24):
            played = play_episode(GAME, player, {}, seed)
            best = SOLVED.value(states(played)[0])
            if len(played["turns"]) < LONGEST and played["return"] < best - 1e-9:
                kept.append(played)
    return kept


class Table:
    """Stands for the two models: the ratio p/π of every token that the data has, by state and what was written."""

    def __init__(self, episodes: list[Episode], logs: list[Played]) -> None:
        self.keys = [self._keys(episode, log) for episode, log in zip(episodes, logs, strict=True)]
        self.ratio: dict[tuple[object, ...], dict[int, float]] = defaultdict(dict)

    def _keys(self, episode: Episode, log: Played) -> list[tuple[int, tuple[object, ...], int]]:
        played = states(log)
        keys, written, last = [], (), -1
        for place in episode.acted.nonzero()[:, 0].tolist():
            turn, token = int(episode.turn[place]), int(episode.tokens[place])
            written = written if turn == last else ()
            state = played[turn]
            keys.append((place, (state.starts, state.place, written), token))
            written, last = (*written, token), turn
        return keys

    def values(self, batch: Batch) -> torch.Tensor:
        grid = torch.zeros(batch.mask.shape, dtype=torch.float64)
        for number, keys in enumerate(self.keys):
            for place, key, _ in keys:
                grid[number, place] = max(self.ratio[key].values(), default=0.0)
        return grid

    def learn(self, weight: torch.Tensor) -> None:
        """The loss's fixed point: the ratio of a token is the mean of its weights."""
        seen: dict[tuple[tuple[object, ...], int], list[float]] = defaultdict(list)
        for number, keys in enumerate(self.keys):
            for place, key, token in keys:
                seen[key, token].append(float(weight[number, place]))
        for (key, token), weights in seen.items():
            self.ratio[key][token] = sum(weights) / len(weights)


def learnt(tmp_path, *, network: bool) -> tuple[Table, Scale, list[Played]]:
    logs = halves()
    write_episodes(tmp_path / "log.jsonl", logs)
    task = load_task({"trajectories": str(tmp_path / "log.jsonl")}, seed=0, heldout=0)
    loaded = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (END, TURN_END))
    engine = TrajectoryEngine(loaded, max_tokens=999, columns=("trajectory",))
    engine.limit = 9999
    prompts = sorted((task.train(i) for i in range(len(logs))), key=lambda p: int(p.id.rpartition(":")[2]))
    episodes = engine.generate(prompts, group_size=1, seed=0)
    batch = make_batch(episodes, None, group_size=1)
    scale = Scale(*task.bounds, 1.0)
    table = Table(episodes, logs)
    best = SimpleNamespace(values=table.values) if network else None
    organ = BellmanTargets(scale, best, rate=1.0, names={})
    before = None
    for _ in range(200):
        organ.after_rollout(batch)
        table.learn(batch.streams.weight)
        if before is not None and torch.equal(before, batch.streams.weight):
            return table, scale, logs
        before = batch.streams.weight
    raise AssertionError("the targets do not come to rest")


def start_values(table: Table) -> dict[State, float]:
    starts = {GAME.begin(GAME.opening(number)) for number in range(len(GAME.rows))}
    return {state: max(table.ratio[state.starts, state.place, ()].values()) for state in starts}


def test_halves_are_joined_to_the_exact_optimal_values(tmp_path):
    """No episode is as good as the best; its targets say what is, and every action on the way has its Q*."""
    table, scale, logs = learnt(tmp_path, network=True)
    best = {state: SOLVED.value(state) for state in start_values(table)}
    assert max(log["return"] for log in logs) < min(best.values())
    for state, value in start_values(table).items():
        assert value == pytest.approx(scale.of(best[state]), abs=1e-6)
    end = tiny_tokenizer().eos_token_id
    checked = 0
    for state in best:
        while state is not None:
            action = SOLVED.action(state)
            written = tuple(tiny_tokenizer()(action, add_special_tokens=False).input_ids)
            learnt_q = table.ratio[state.starts, state.place, written][end]
            assert learnt_q == pytest.approx(scale.of(SOLVED.q(state, action)), abs=1e-6)
            (after,) = GAME.outcomes(state, action)
            state, checked = after.state, checked + 1
    assert checked == 4 * 6


def test_returns_do_not_join_halves(tmp_path):
    """From some start no episode went on as well as its halves would have, and returns know of no other."""
    table, scale, _ = learnt(tmp_path, network=False)
    lost = [scale.of(SOLVED.value(state)) - value for state, value in start_values(table).items()]
    assert max(lost) > 0.05

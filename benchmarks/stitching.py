"""Can halves be joined? Logs of players that are good at one half of a maze, imitated, filtered, and valued.

    python benchmarks/stitching.py                # trains, and writes results/stitching.jsonl
    python benchmarks/stitching.py --summary      # what the committed file says

Half of the log is by a player that is optimal until it has the key and random after it, half by one that is random
until then and optimal after it; episodes as good as the best are left out, so that only joining the halves gives
one. The model is a Llama of 0.1 million parameters with a token a word, trained from nothing. Arms, each on the
same logs: cloning, cloning of the best 30 %, returns as values, and Q-SFT; the last two start from the cloned model
and are played by `ValueEngine` at each `--beta`, the first two as they are. A seed decides the logs, the first
weights, the order of training and the play. `q_error` is the mean distance of p/pi from Q* on the values' scale, over
the actions of the states that an optimal player meets whose probability in the data is at least 0.01.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from klent.config import make_recipe
from klent.control.bellman import Scale
from klent.environments.episode_log import Played, play_episode, write_episodes
from klent.environments.games.maze import Maze
from klent.environments.games.players import POLICIES
from klent.environments.games.solve import Solution, states
from klent.kit.student import t_bound
from klent.models.load import LoadedModel, load_policy
from klent.rollout.engine import Engine
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
from klent.rollout.value_engine import ValueEngine
from klent.runs.console import QuietConsole
from klent.runs.train import train
from klent.streams.prompt import Prompt
from klent.tasks.trajectories import TrajectoryTask

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from word_llama import END, make_word_llama

RESULTS = Path(__file__).resolve().parent / "results" / "stitching.jsonl"
TURNS, LONGEST = 14, 12
Say = Callable[[str], None]


def halves(game: Maze, seed: int, count: int) -> list[Played]:
    """Episodes of both players that ended by themselves and are not as good as the best."""
    solved = Solution(game)
    kept: list[Played] = []
    for half, name in enumerate(("early", "late"), 1):
        player, number = POLICIES[name](game, seed), 0
        while len(kept) < half * count // 2:
            played = play_episode(game, player, {}, 1000 * seed + number)
            number += 1
            best = solved.value(game.begin(str(played["turns"][0]["observation"])))
            if len(played["turns"]) <= LONGEST and played["return"] < best - 1e-9:
                kept.append(played)
    return kept


def make_model(game: Maze, folder: Path, seed: int) -> None:
    """A small model that has read nothing, with a token for each word of the game."""
    texts = [game.opening(start) for start in range(len(game.rows))] + ["up down left right", game.allowed]
    for state in states(game):
        texts += [outcome.text for action in game.actions(state) for outcome in game.outcomes(state, action)]
    make_word_llama(texts, folder, seed, word=r"\w+|[^\w\s]|\s+", longest=512)


def fit(folder: Path, name: str, seed: int, steps: int, **changes: object) -> Path:
    """The final folder of a run on the logs."""
    values = {
        "name": name,
        "model": str(folder / "model"),
        "task": {"trajectories": str(folder / "log.jsonl"), **changes.pop("task", {})},  # type: ignore[dict-item]
        "steps": steps,
        "seed": seed,
        "prompts_per_step": 16,
        "optimizer": {"lr": 3e-3, "warmup_steps": 10, "schedule": "linear"},
        "checkpoint": {"every": 0},
    }
    recipe = make_recipe({**values, **changes})
    run = train(recipe, folder / name, command="benchmarks/stitching.py", console=QuietConsole())
    return run / "final"


def play(engine: Engine, loaded: LoadedModel, each: int, seed: int) -> float:
    """Mean return of ``each`` episodes from every start."""
    starts = [row for row in Maze(turns=TURNS).rows for _ in range(each)]
    games = [Maze(turns=TURNS) for _ in starts]
    encode = loaded.tokenizer
    ids = [list(encode(game.reset(row, 0)).input_ids) for game, row in zip(games, starts, strict=True)]
    earned, going = [0.0] * len(games), list(range(len(games)))
    for turn in range(TURNS):
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


def q_error(value: LoadedModel, behaviour: LoadedModel, scale: Scale) -> float:
    """Mean distance of p/pi from Q*, on the scale of the values, along the optimal player's way."""
    game = Maze(turns=TURNS)
    solved, errors = Solution(game), []
    for number in range(len(game.rows)):
        text = game.opening(number)
        state = game.begin(text)
        ids = list(value.tokenizer(text).input_ids)
        while state is not None:
            with torch.no_grad():
                logits = [m.model(input_ids=torch.tensor([ids])).logits[0, -1] for m in (value, behaviour)]
            p, pi = (x.softmax(-1) for x in logits)
            for action in game.actions(state):
                (token,) = value.tokenizer(action).input_ids
                if pi[token] >= 0.01:
                    exact = scale.of(solved.q(state, action))
                    errors.append(abs(min(float(p[token] / pi[token]), 1.0) - exact))
            action = solved.action(state)
            (after,) = game.outcomes(state, action)
            ids += value.tokenizer(action + END + after.text).input_ids
            state = after.state
    return statistics.fmean(errors)


def one_seed(seed: int, arguments: argparse.Namespace, say: Say) -> list[dict[str, object]]:
    """Every arm of a seed."""
    game = Maze(turns=TURNS)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        logs = halves(game, seed, arguments.episodes)
        write_episodes(folder / "log.jsonl", logs)
        make_model(game, folder / "model", seed)
        options = SamplingOptions(max_tokens=3)

        def note(arm: str, beta: float | None, engine: Engine, loaded: LoadedModel, **more: float) -> None:
            earned = play(engine, loaded, arguments.each, seed)
            rows.append({"seed": seed, "arm": arm, "beta": beta, "return": earned, **more})
            say(json.dumps(rows[-1]))

        steps = arguments.steps
        data = statistics.fmean(log["return"] for log in logs)
        most = max(log["return"] for log in logs)
        rows.append(
            {"seed": seed, "arm": "the log", "return": data, "best": most, "optimal": Solution(game).start()}
        )
        cloned = fit(folder, "cloned", seed, steps, method="sft")
        behaviour = load_policy(str(cloned))
        note("cloning", None, TransformersEngine(behaviour, options), behaviour)
        best = load_policy(str(fit(folder, "best", seed, steps, method="sft", task={"keep": 0.3})))
        note("cloning of the best 30 %", None, TransformersEngine(best, options), best)
        task = make_recipe(
            {
                "name": "n",
                "model": "m",
                "method": "sft",
                "steps": 1,
                "task": {"trajectories": str(folder / "log.jsonl")},
            }
        ).task
        scale = Scale(*TrajectoryTask(task, seed=seed).bounds, 1.0)  # type: ignore[arg-type]
        for arm, target in (("returns as values", "returns"), ("Q-SFT", "bellman")):
            bellman = {"target": target, **({"rate": 0.05} if target == "bellman" else {})}
            final = fit(folder, target, seed, 2 * steps, method="qsft", model=str(cloned), bellman=bellman)
            value = load_policy(str(final))
            error = q_error(value, behaviour, scale)
            for beta in arguments.beta:
                note(arm, beta, ValueEngine(value, behaviour, options, beta=beta), value, q_error=error)
    return rows


def summary(rows: Sequence[dict[str, object]]) -> str:
    """A table: means over seeds with 95 % intervals, and the return less that of cloning, paired by seed."""
    lines = ["| arm | beta | return | less `cloning` | `q_error` |", "|---|---|---|---|---|"]
    found = {(str(row["arm"]), row.get("beta"), row["seed"]): row for row in rows}
    for arm, beta in dict.fromkeys((arm, beta) for arm, beta, _ in found):
        mine = [row for row in rows if (row["arm"], row.get("beta")) == (arm, beta)]
        earned = [_number(row["return"]) for row in mine]
        cloned = [_number(found["cloning", None, row["seed"]]["return"]) for row in mine]
        less = "" if arm in ("cloning", "the log") else interval(np.subtract(earned, cloned))
        errors = [_number(row["q_error"]) for row in mine if "q_error" in row]
        cells = [interval(np.array(earned)), less, interval(np.array(errors)) if errors else ""]
        lines.append(f"| {arm} | {'' if beta is None else f'{beta:g}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ends(rows: Sequence[dict[str, object]]) -> str:
    """What there was to gain: the best episode that any log holds, and the optimal player."""
    known = [row for row in rows if "optimal" in row]
    best, optimal = (max(_number(row[key]) for row in known) for key in ("best", "optimal"))
    return f"best episode of any log {best:.3f}, optimal player {optimal:.3f}, {len(known)} seeds"


def committed(file: Path = RESULTS) -> list[dict[str, object]]:
    """The rows of a file of results."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def interval(values: NDArray[np.float64]) -> str:
    """Mean with its 95 % interval over seeds."""
    if len(values) < 2:
        return f"{values.mean():.3f}"
    half = t_bound(0.05, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def _number(value: object) -> float:
    return float(str(value))


def main() -> None:
    """Train every arm of every seed, or read what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--steps", type=int, default=150, help="of cloning; values take twice as many")
    parser.add_argument("--each", type=int, default=10, help="episodes played from each of the four starts")
    parser.add_argument("--beta", type=float, nargs="+", default=[8.0, 32.0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true")
    arguments = parser.parse_args()
    if not arguments.summary:
        rows = [row for seed in range(arguments.seeds) for row in one_seed(seed, arguments, print)]
        arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = committed(arguments.out)
    print(f"{summary(rows)}\n\n{ends(rows)}")


if __name__ == "__main__":
    sys.exit(main())

"""What can be learnt from logged play, arm by arm, and online from the same start: games with a known optimum.

    python examples/games/arms.py                                  # trains what is missing of arms.csv
    python examples/games/arms.py --worlds guess_who --seeds 0 1
    python examples/games/arms_table.py                            # the tables of arms.csv

Worlds, logs and the model are in worlds.py. A seed decides the log, the first weights, the order of training and the
play. Of every world and seed:

    cloning             sft on the log; `best 10 %`, `30 %`, `50 %` on those episodes, in as many steps
    returns             qsft from the clone, what was earned in place of the Bellman target
    constant            qsft from the clone, every action with the mean weight that Q-SFT's had: smoothing, no rewards
    Q-SFT               with the dummy action; `Q-SFT, uniform` spreads the rest over the vocabulary, as the paper
    ILQL                implicit Q-learning from the clone
    GRPO                online from the clone, credit by turn; `GRPO, episode` by episode
    GRPO, best 30 %     online from the best 30 %'s clone; `GRPO, alone` from the model that has read nothing

Values are played at every `--betas`. `q_error` is the mean distance of what an arm takes an action's value for, p/pi
or ILQL's logit, from Q*, on the values' scale of 0 to 1, over actions of probability 0.01 and more in the clone, in
the states that an optimal player meets. No report is drawn of the runs, and their folders are not kept.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from arms_table import FILE, Row, read  # noqa: E402
from worlds import WORLDS, World, log, make_model, play  # noqa: E402

from klent.config import make_recipe  # noqa: E402
from klent.control.bellman import Scale  # noqa: E402
from klent.environments.episode_log import write_episodes  # noqa: E402
from klent.environments.games import Solution  # noqa: E402
from klent.io.files import write_atomic  # noqa: E402
from klent.models.load import LoadedModel, load_policy  # noqa: E402
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine  # noqa: E402
from klent.rollout.value_engine import ValueEngine  # noqa: E402
from klent.runs import train as runs  # noqa: E402
from klent.runs.console import QuietConsole  # noqa: E402

COST, TURN_TOKENS = 0.05, 3
CLONES: dict[str, dict[str, object]] = {
    "cloning": {},
    "best 50 %": {"keep": 0.5},
    "best 30 %": {"keep": 0.3},
    "best 10 %": {"keep": 0.1},
}
VALUES = ("Q-SFT", "Q-SFT, uniform", "returns", "constant", "ILQL")
ONLINE = {
    "GRPO": ("cloning", "turn"),
    "GRPO, episode": ("cloning", "episode"),
    "GRPO, best 30 %": ("best 30 %", "turn"),
    "GRPO, alone": ("model", "turn"),
}
ARMS = (*CLONES, *VALUES, *ONLINE)
NAMES = ("world", "seed", "arm", "beta", "return", "q_error", "log", "best", "optimal", "steps", "cpu")


class Study:
    """One world and seed: what was trained, by arm, and its rows."""

    def __init__(self, name: str, seed: int, options: argparse.Namespace, folder: Path) -> None:
        self.name, self.seed, self.options, self.folder = name, seed, options, folder
        self.world: World = WORLDS[name]
        self.game = self.world.make(**self.world.config)
        self.solved = Solution(self.game)
        self.rows: list[Row] = []
        self.ends: dict[str, Path] = {"model": folder / "model"}
        self.weight = float("nan")
        episodes = log(self.world, seed, options.episodes)
        earned = [played["return"] for played in episodes]
        self.known = {
            "log": f"{statistics.fmean(earned):.5f}",
            "best": f"{max(earned):.3f}",
            "optimal": f"{self.solved.start():.5f}",
        }
        write_episodes(folder / "log.jsonl", episodes)
        make_model(self.world, episodes, folder / "model", seed)

    def everything(self) -> list[Row]:
        """Train and play every arm."""
        for arm in ARMS:
            if arm in self.options.arms:
                begun = time.process_time()
                error = self._trained(arm)
                for beta in self.options.betas if arm in VALUES else (None,):
                    earned = play(self.world, *self._player(arm, beta), self.options.play, self.seed)
                    row = {"world": self.name, "seed": self.seed, "arm": arm, "return": f"{earned:.5f}"}
                    row |= {"beta": "" if beta is None else f"{beta:g}", "q_error": error}
                    row |= {**self.known, "steps": self._steps(arm)}
                    row["cpu"] = f"{time.process_time() - begun:.1f}"
                    self.rows.append({key: str(value) for key, value in row.items()})
                    print(json.dumps(self.rows[-1]), flush=True)
        return self.rows

    def _steps(self, arm: str) -> int:
        options = self.options
        return int(options.steps if arm in CLONES else options.online if arm in ONLINE else options.values)

    def _trained(self, arm: str) -> str:
        """Train an arm; what it takes values for, against the exact ones."""
        if arm in ONLINE:
            self._online(arm)
            return ""
        if arm in CLONES:
            self._fit(arm, self.ends["model"], {"method": "sft", "task": self._logged(**CLONES[arm])})
            return ""
        bounds = [-COST * self.game.turns, 1 - COST]
        task = self._logged() if arm == "constant" else self._logged(returns=bounds)
        changes: dict[str, Any] = {"method": "qsft", "task": task}
        if arm == "ILQL":
            changes |= {"method": "ilql", "bellman": {"rate": self.options.rate}}
        elif arm in ("returns", "constant"):
            weight = {"weight": self.weight} if arm == "constant" else {}
            changes["bellman"] = {"target": arm, **weight}
        else:
            changes["bellman"] = {"rate": self.options.rate}
        if arm == "Q-SFT, uniform":
            size = load_policy(str(self.ends["cloning"])).model.get_output_embeddings().weight.shape[0]
            changes["loss"] = {"weighted_cross_entropy": None, "uniform_cross_entropy": {"actions": size}}
        run = self._fit(arm, self.ends["cloning"], changes)
        if arm == "Q-SFT":  # what smoothing of equal strength is
            lines = (run / "metrics.jsonl").read_text().splitlines()
            self.weight = statistics.fmean(json.loads(line)["bellman/target"] for line in lines)
        if arm == "constant":
            return ""
        return f"{q_error(self, load_policy(str(self.ends[arm])), Scale(*bounds, 1.0), arm == 'ILQL'):.5f}"

    def _logged(self, **more: object) -> dict[str, object]:
        return {"trajectories": str(self.folder / "log.jsonl"), "heldout": 1, **more}

    def _online(self, arm: str) -> None:
        start, credit = ONLINE[arm]
        turns = self.game.turns
        task = {"env": self.world.env, "config": self.world.config, "max_turns": turns, "timeout": 60.0}
        task |= {"turn_tokens": TURN_TOKENS, "credit": credit}
        changes = {"method": "grpo", "task": task, "rollout": {"max_tokens": turns * TURN_TOKENS}}
        shape = {"prompts_per_step": 4, "group_size": 8, "eval": None}
        rate = {"optimizer": {"lr": self.options.online_lr, "warmup_steps": 3}}
        self._fit(arm, self.ends[start], {**changes, **shape, **rate})

    def _fit(self, arm: str, model: Path, changes: dict[str, Any]) -> Path:
        values = {
            "name": f"arm{ARMS.index(arm)}",
            "model": str(model),
            "steps": self._steps(arm),
            "seed": self.seed,
            "prompts_per_step": 16,
            "optimizer": {"lr": self.options.lr, "warmup_steps": 10, "schedule": "linear"},
            "rollout": {"max_tokens": 1000},
            "checkpoint": {"every": 0},
        }
        target = self.folder / f"arm{ARMS.index(arm)}"
        recipe = make_recipe({**values, **changes})
        run = runs.train(recipe, target, command="examples/games/arms.py", console=QuietConsole())
        self.ends[arm] = run / "final"
        return run

    def _player(self, arm: str, beta: float | None) -> tuple[Any, LoadedModel]:
        trained, options = load_policy(str(self.ends[arm])), SamplingOptions(max_tokens=TURN_TOKENS)
        if beta is None:
            return TransformersEngine(trained, options), trained
        form = "logit" if arm == "ILQL" else "ratio"
        behaviour = load_policy(str(self.ends["cloning"]))
        return ValueEngine(trained, behaviour, options, beta=beta, form=form), trained


def q_error(study: Study, value: LoadedModel, scale: Scale, logits: bool) -> float:
    """Mean distance of what is taken for an action's value from Q*, where an optimal player comes by."""
    behaviour, game, errors = load_policy(str(study.ends["cloning"])), study.game, []
    for row in list(game.rows)[:8]:
        text = game.reset(row, 0)
        history, ids, done = [text], list(value.tokenizer(text).input_ids), False
        while not done:
            state = game.read(history)
            with torch.no_grad():
                z, b = (m.model(input_ids=torch.tensor([ids])).logits[0, -1] for m in (value, behaviour))
            pi = b.softmax(-1)
            said = z[: len(pi)] if logits else z.softmax(-1)[: len(pi)] / pi
            for action in game.actions(state):
                (token,) = value.tokenizer(action).input_ids
                if pi[token] >= 0.01:
                    exact = scale.of(study.solved.q(state, action))
                    errors.append(abs(float(said[token].clamp(0, 1)) - exact))
            action = study.solved.action(state)
            step = game.step(action)
            history += [action, str(step.observation)]
            ids += value.tokenizer(f"{action}<end>{step.observation}").input_ids
            done = step.done
    return statistics.fmean(errors)


def write(rows: Sequence[Row], file: Path) -> None:
    """All rows, whole or not at all."""
    text = StringIO()
    writer = csv.DictWriter(text, NAMES, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(file, text.getvalue())


def plan(options: argparse.Namespace, rows: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """What is missing, seed by seed, so that a study that is stopped has whole seeds.

    A seed that lacks an arm, or a beta of one, is trained anew as a whole.
    """
    there = {(row["world"], row["seed"], row["arm"], row["beta"]) for row in rows}
    betas = {arm: [f"{beta:g}" for beta in options.betas] if arm in VALUES else [""] for arm in options.arms}
    for seed in options.seeds:
        for world in options.worlds:
            wanted = {(world, str(seed), arm, beta) for arm in options.arms for beta in betas[arm]}
            if not wanted <= there:
                yield world, seed


def _no_report(folder: Path) -> None:
    """In place of the report of a run, which takes as long as the run."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--betas", nargs="+", type=float, default=[8.0, 32.0, 128.0])
    parser.add_argument("--episodes", type=int, default=200, help="of a log")
    parser.add_argument("--play", type=int, default=64, help="episodes that an arm is judged by")
    parser.add_argument("--steps", type=int, default=80, help="of cloning, 16 episodes each")
    parser.add_argument("--values", type=int, default=120, help="steps of values, likewise")
    parser.add_argument("--online", type=int, default=25, help="steps of GRPO, 32 episodes each")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--online-lr", type=float, default=1e-3)
    parser.add_argument(
        "--rate", type=float, default=0.1, help="by which the target network follows in a step"
    )
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    rows = read(options.out)
    runs.write_report = _no_report
    for world, seed in list(plan(options, rows)):
        with tempfile.TemporaryDirectory() as scratch:
            new = Study(world, seed, options, Path(scratch)).everything()
        rows = [row for row in rows if (row["world"], row["seed"]) != (world, str(seed))] + new
        write(rows, options.out)


if __name__ == "__main__":
    main()

"""Sampling episodes of several turns, klent against TRL: seconds, and how often each token is read.

    python benchmarks/environment_rollout.py --peer-python ../trl/bin/python
    python benchmarks/environment_rollout.py --games maze --starts 4 --turns 8 --repetitions 5

SmolLM2-135M-Instruct in float32 plays a game of klent's, `maze` or `guess_who`: a group of 4 episodes of 4 turns of
8 tokens. The token that ends a turn is put off in both, so that each samples the same number of tokens in the same
number of turns, whatever the model says; only a game that is won by chance ends before. An episode ends with the
policy's last turn.

    klent          klent.rollout.play.PlayEngine as a run builds it: a group reads its opening once, and an episode
                   keeps its keys and values between turns
    klent, reread  the same without what it keeps: every turn reads the whole episode again
    trl            TRL's GRPOTrainer with an `environment_factory`, transformers' generate(): `_generate` alone, which
                   is tokenizing, sampling and the calls of the environment; no log-probabilities, no reward

TRL hears an environment through tool calls alone. So that a model of 135M plays at all, the tokenizer that TRL is
given reads every turn as a call of the game's one tool, and its chat template writes a tool's answer as klent writes
it, as a message of the user. TRL does not write the end of a turn that was cut, klent does: one token a turn more.

Each contender is a worker process that stays; they take turns, one repetition after the other, in one order and then
the reverse. `load` is the mean number of running processes of the last minute, the worker's own among them. Figures
are ratios of processor seconds within a repetition, their median and range: where more runs than the machine has
cores, the clock counts the waiting too. The game itself runs beside klent in other processes, and takes no time.

    seconds    of one rollout, by the clock
    cpu        processor seconds of one rollout, of the process that samples
    sampled    tokens that the policy wrote
    read       tokens read beside them: klent's `tokens/prefill`, and the lengths of what TRL gives generate()
    once       the least that can be read: a group's opening once, what the environment said once, and the last
               token of each turn but the final one, which was drawn and not read
    again      what a rollout reads that begins each turn with the whole episode so far
    fed        positions that went through the model, padding and sampled tokens included

The first rollout warms a worker up and is not kept. The peer needs `pip install trl==1.16.0` and klent importable.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
GAMES = {
    "maze": "klent.environments.games.maze:Maze",
    "guess_who": "klent.environments.games.guess_who:GuessWho",
}
KLENT = {"klent": True, "klent, reread": False}  # whether it keeps keys and values
Rows = list[dict[str, Any]]
Counts = dict[str, int]
Times = tuple[float, float]  # by the clock, and of the processor
Rollout = Callable[[int], tuple[Times, Counts]]


class Spoken:
    """A game of klent's that opens with a message, as a chat does."""

    def __init__(self, *, game: str, turns: int) -> None:
        from klent.kit.own_code import load

        self.game = load(GAMES[game])(turns=turns)

    def reset(self, row: dict[str, object], seed: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.game.reset(row, seed)}]

    def step(self, action: str) -> Any:
        return self.game.step(action)


def recipe_of(options: argparse.Namespace, game: str) -> Any:
    from klent.config import make_recipe

    return make_recipe(
        {
            "model": options.model,
            "method": "grpo",
            "steps": 1,
            "prompts_per_step": options.starts,
            "group_size": options.group,
            "task": {
                "env": f"{Path(__file__).resolve()}:Spoken",
                "config": {"game": game, "turns": options.turns},
                "max_turns": options.turns,
                "turn_tokens": options.turn_tokens,
            },
            "rollout": {"max_tokens": options.turns * options.turn_tokens},
        }
    )


def task_of(recipe: Any) -> Any:
    from klent.tasks import load_task

    return load_task(recipe.task, seed=0, heldout=0, needed=())


def watch(model: Any) -> list[int]:
    """A list to which the number of positions is added that go through the model, call by call."""
    fed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: fed.append(given[0].numel()))
    return fed


def stopwatch() -> Callable[[], Times]:
    """Start; what is returned tells the seconds since then."""
    begun, worked = time.perf_counter(), time.process_time()
    return lambda: (time.perf_counter() - begun, time.process_time() - worked)


def klent_rollout(options: argparse.Namespace, game: str, *, keeps: bool) -> Rollout:
    from contextlib import nullcontext

    from klent.models.load import load_policy
    from klent.runs.engines import build_engine

    recipe = recipe_of(options, game)
    loaded = replace(load_policy(options.model), stop_ids=(-1,))  # no token ends a turn
    task = task_of(recipe)
    engine: Any = build_engine(loaded, recipe.rollout, environments=task.environments)
    if not keeps:
        engine.engine.keeping = nullcontext
    fed = watch(loaded.model)

    def rollout(repetition: int) -> tuple[Times, Counts]:
        prompts = [task.train(repetition * options.starts + i) for i in range(options.starts)]
        fed.clear()
        elapsed = stopwatch()
        episodes = engine.generate(prompts, group_size=options.group, seed=repetition)
        times = elapsed()
        problems = [episode.problem for episode in episodes if episode.problem]
        if problems:
            sys.exit(problems[0])
        return times, counted(episodes, options.group) | {"fed": sum(fed)}

    return rollout


def counted(episodes: Sequence[Any], group: int) -> Counts:
    """What klent sampled and read, what had to be read, and what a rollout that reads all again would read."""
    once = again = 0
    for number, episode in enumerate(episodes):
        opening = len(episode.prompt_ids)
        said = int((~episode.acted).sum())
        once += (opening if number % group == 0 else 0) + said + episode.turns - 1
        again += opening
        position = opening
        for (turn, acted), run in groupby(zip(episode.turn.tolist(), episode.acted.tolist(), strict=True)):
            if acted and turn:
                again += position
            position += len(list(run))
    return {
        "episodes": len(episodes),
        "turns": sum(episode.turns for episode in episodes),
        "sampled": sum(int(episode.acted.sum()) for episode in episodes),
        "read": sum(episode.prefill for episode in episodes),
        "once": once,
        "again": again,
    }


def trl_rollout(options: argparse.Namespace, game: str) -> Rollout:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from klent.models.locate import locate_model

    class Played:
        """The game as TRL takes it: methods are tools, and the policy calls them."""

        def __init__(self) -> None:
            self._game = Spoken(game=game, turns=options.turns)

        def reset(self, row: dict[str, object], seed: int, **_: object) -> str:
            return self._game.reset(row, seed)[0]["content"]

        def say(self, text: str) -> str:
            """Say a word.

            Args:
                text: The word.
            """
            return str(self._game.step(text).observation)

    class Timed(GRPOTrainer):  # type: ignore[misc]
        """Notes how long a rollout takes, and how long what it gives generate() is."""

        def _generate(self, *given: Any, **named: Any) -> Any:
            self.read: list[int] = []
            self.sampled: list[int] = []
            elapsed = stopwatch()
            answer = super()._generate(*given, **named)
            self.times = elapsed()
            return answer

        def _generate_single_turn(self, prompt_ids: Any, *given: Any, **named: Any) -> Any:
            self.read += map(len, prompt_ids)
            answer = super()._generate_single_turn(prompt_ids, *given, **named)
            self.sampled += map(len, answer[0])
            return answer

    source = str(locate_model(options.model))
    tokenizer = AutoTokenizer.from_pretrained(source)
    content = "message['content'] + (message['tool_calls'] | tojson if message['tool_calls'] else '')"
    role = "('user' if message['role'] == 'tool' else message['role'])"
    template = tokenizer.chat_template.replace("message['content']", f"({content})")
    tokenizer.chat_template = template.replace("+ message['role'] +", f"+ {role} +")
    tokenizer.response_template = {
        "every turn": "a call of say"
    }  # TRL asks for one, and parses with the next

    def parse_response(ids: list[int], **_: Any) -> dict[str, Any]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        call = {"type": "function", "function": {"name": "say", "arguments": {"text": text}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    tokenizer.parse_response = parse_response
    each, episodes = options.turn_tokens, options.starts * options.group
    folder = tempfile.mkdtemp(prefix="klent-trl-")
    trainer = Timed(
        AutoModelForCausalLM.from_pretrained(source, dtype="float32"),
        lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=episodes,
            num_generations=options.group,
            max_completion_length=4096,
            max_tool_calling_iterations=options.turns - 1,
            generation_kwargs={"max_new_tokens": each, "min_new_tokens": each},
            max_steps=1,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": ""}]}]),
        processing_class=tokenizer,
        environment_factory=Played,
    )
    trainer.model.train()
    fed = watch(trainer.model)
    task = task_of(recipe_of(options, game))

    def rollout(repetition: int) -> tuple[Times, Counts]:
        starts = [task.train(repetition * options.starts + i).columns["start"] for i in range(options.starts)]
        empty = [{"role": "user", "content": ""}]
        fed.clear()
        trainer._generate_and_score_completions(
            [{"prompt": empty, **start} for start in starts for _ in range(options.group)]
        )
        positions = sum(fed)
        counts = {"episodes": episodes, "turns": len(trainer.read), "sampled": sum(trainer.sampled)}
        return trainer.times, counts | {"read": sum(trainer.read), "fed": positions}

    return rollout


def worker(name: str, game: str, options: argparse.Namespace) -> None:
    """Play a rollout for each line of standard input that names a repetition, and answer with its record."""
    if name in KLENT:  # as the command line does
        from klent.runs.process import prepare_process

        prepare_process()
    import torch

    rollout = klent_rollout(options, game, keeps=KLENT[name]) if name in KLENT else trl_rollout(options, game)
    version = __import__("trl" if name == "trl" else "klent").__version__
    for line in sys.stdin:
        (seconds, cpu), counts = rollout(int(line))
        record = {"version": version, "seconds": round(seconds, 3), "cpu": round(cpu, 3), **counts}
        record |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        print(f"RECORD {json.dumps(record)}", flush=True)


def start(name: str, game: str, options: argparse.Namespace) -> "subprocess.Popen[str]":
    python = options.peer_python if name == "trl" else sys.executable
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    arguments = [python, __file__, "--worker", name, "--games", game, "--model", options.model]
    for key in ("starts", "group", "turns", "turn_tokens"):
        arguments += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True, env=environment)


def ask(name: str, process: "subprocess.Popen[str]", repetition: int) -> dict[str, Any]:
    """The record of one rollout of a worker."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{repetition}\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("RECORD "):
            record: dict[str, Any] = json.loads(line.removeprefix("RECORD "))
            return record
    sys.exit(f"the worker of {name} ended with {process.wait()}; is it installed in {process.args[0]}?")  # type: ignore[index]


def measure(game: str, options: argparse.Namespace) -> Rows:
    """A row for each contender and repetition of a game."""
    from common import device_name, today

    names = list(options.contenders)
    workers = {name: start(name, game, options) for name in names}
    rows: Rows = []
    try:
        for repetition in range(options.repetitions + 1):
            order = names if repetition % 2 else names[::-1]
            for name in order:
                record = ask(name, workers[name], repetition)
                row = {"game": game, "contender": name, "repetition": repetition} | record
                row["load"] = round(os.getloadavg()[0], 2)
                row |= {"model": options.model, "device": device_name(), "date": today()}
                print(json.dumps(row), flush=True)
                if repetition:
                    rows.append(row)
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    return rows


def ratios(rows: Rows, game: str, peer: str) -> list[float]:
    """The peer's processor seconds over klent's, one for each repetition."""
    seconds = {(r["contender"], r["repetition"]): float(r["cpu"]) for r in rows if r["game"] == game}
    pairs = [number for name, number in seconds if name == peer and ("klent", number) in seconds]
    return [seconds[peer, number] / seconds["klent", number] for number in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES))
    parser.add_argument("--contenders", nargs="+", choices=[*KLENT, "trl"], default=[*KLENT, "trl"])
    parser.add_argument("--repetitions", type=int, default=3, help="that are kept")
    parser.add_argument("--starts", type=int, default=1)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--turn-tokens", type=int, default=8)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python that has TRL")
    parser.add_argument("--out", type=Path, default=RESULTS / "environment_rollout_cpu.csv")
    parser.add_argument("--worker", choices=[*KLENT, "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.games[0], options)
        return
    sys.path.insert(0, str(HERE))
    from common import show, write

    names = ["game", "contender", "repetition", "version", "seconds", "cpu", "episodes", "turns", "sampled"]
    names += ["read", "once", "again", "fed", "load", "threads", "model", "device", "torch", "date"]
    rows: Rows = []
    for game in options.games:
        rows += measure(game, options)
        write(options.out, [{name: row.get(name, "") for name in names} for row in rows])
    table = []
    for game in options.games:
        for peer in options.contenders:
            found = ratios(rows, game, peer)
            if peer != "klent" and found:
                median, low, high = (f"{f(found):.2f}x" for f in (statistics.median, min, max))
                table.append(
                    {"game": game, "against": peer, "faster": median, "lowest": low, "highest": high}
                )
    if table:
        show(table, list(table[0]))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

"""Decoding with two models: a mixture of policy and target against each of them alone.

    python benchmarks/two_models.py                 # about 3 minutes on 2 idle cores
    python benchmarks/two_models.py --cases small   # seconds

16 rows (2 prompts with 8 completions each) of 64 tokens, end tokens ignored, at temperature 1:

    smollm2   SmolLM2-135M-Instruct and a second copy that is told the answer, vocabulary 49,152
    small     the model of examples/small_model and one that was trained from it, vocabulary 28; left out
              where runs/small_model and runs/small_teacher do not exist

Each contender is klent's own engine in one process: the policy alone, the target alone behind its own
prompt, and both through the mixture, with alpha 0.5 and with the Chernoff point solved for every token.
They take turns, in one order and then the reverse; ``over_both`` is the mixture's time over the sum of the
two alone in the same turn, as the median over turns. Small models get five times as many turns.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import klent

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from common import device_name, show, today, write  # noqa: E402

from klent.models.load import LoadedModel, load_policy  # noqa: E402
from klent.rollout.mixture_engine import MixtureEngine  # noqa: E402
from klent.rollout.target import Target  # noqa: E402
from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine  # noqa: E402
from klent.runs.process import keep_freed_memory  # noqa: E402
from klent.tasks import Prompt  # noqa: E402

PROMPTS, GROUP, TOKENS = 2, 8, 64
HINT = "{prompt} (the answer is {answer})"


def smollm2() -> tuple[LoadedModel, Target, list[Prompt]] | None:
    sums = [(4, 7), (38, 5)]
    prompts = [
        Prompt(f"sum/{a}+{b}", [{"role": "user", "content": f"What is {a} + {b}?"}], {"answer": a + b})
        for a, b in sums
    ]
    return load_policy("smollm2-135m"), Target(load_policy("smollm2-135m"), prompt=HINT), prompts


def small() -> tuple[LoadedModel, Target, list[Prompt]] | None:
    models = [Path("runs/small_model"), Path("runs/small_teacher")]
    if not all(folder.is_dir() for folder in models):
        return None
    policy, target = (load_policy(str(folder)) for folder in models)
    return policy, Target(target), [Prompt(text, text) for text in ("4+9-2+7=?", "5+2*6-3=?")]


CASES = {"smollm2": smollm2, "small": small}


def contenders(
    policy: LoadedModel, target: Target, prompts: list[Prompt]
) -> dict[str, tuple[TransformersEngine, list[Prompt]]]:
    """What is timed, by name: an engine and its prompts."""
    ours, theirs = (replace(loaded, stop_ids=()) for loaded in (policy, target.loaded))
    both = replace(target, loaded=theirs)
    told = [Prompt(prompt.id, target.question(prompt)) for prompt in prompts]
    options = SamplingOptions(max_tokens=TOKENS)
    return {
        "policy": (TransformersEngine(ours, options), prompts),
        "target": (TransformersEngine(theirs, options), told),
        "mixture, alpha 0.5": (MixtureEngine(ours, both, options, alpha=0.5), prompts),
        "mixture, chernoff": (MixtureEngine(ours, both, options, alpha="chernoff"), prompts),
    }


def measure(
    engines: dict[str, tuple[TransformersEngine, list[Prompt]]], turns: int
) -> dict[str, list[float]]:
    """Seconds of every contender in every turn, after a few tokens of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for engine, asked in engines.values():
        engine.options = replace(engine.options, max_tokens=4)
        engine.generate(asked, group_size=GROUP, seed=0)
        engine.options = replace(engine.options, max_tokens=TOKENS)
    for turn in range(turns):
        for name in reversed(engines) if turn % 2 else engines:
            engine, asked = engines[name]
            started = time.perf_counter()
            rollouts = engine.generate(asked, group_size=GROUP, seed=turn)
            seconds[name].append(time.perf_counter() - started)
            assert all(len(rollout.tokens) == TOKENS for rollout in rollouts)
            print(f"turn {turn + 1}: {name} {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "two_models_cpu.csv")
    options = parser.parse_args()
    keep_freed_memory()
    table: list[dict[str, Any]] = []
    for case in options.cases:
        found = CASES[case]()
        if found is None:
            print(f"{case} left out: there is no runs/small_model with runs/small_teacher", file=sys.stderr)
            continue
        turns = options.turns * (5 if case == "small" else 1)
        seconds = measure(contenders(*found), turns)
        both = [a + b for a, b in zip(seconds["policy"], seconds["target"], strict=True)]
        for name, times in seconds.items():
            over = [t / b for t, b in zip(times, both, strict=True)] if name.startswith("mixture") else []
            table.append(
                {
                    "case": case,
                    "contender": name,
                    "rows": PROMPTS * GROUP,
                    "tokens": TOKENS,
                    "seconds": round(statistics.median(times), 4),
                    "over_both": round(statistics.median(over), 3) if over else "",
                    "lowest": round(min(over), 3) if over else "",
                    "highest": round(max(over), 3) if over else "",
                    "turns": turns,
                    "threads": torch.get_num_threads(),
                    "device": device_name(),
                    "torch": torch.__version__,
                    "klent": klent.__version__,
                    "date": today(),
                }
            )
    if not table:
        sys.exit("nothing was measured")
    show(table, ["case", "contender", "seconds", "over_both", "lowest", "highest", "turns"])
    write(options.out, table)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

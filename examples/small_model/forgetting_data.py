"""The files of the forgetting study: one new task, three old ones, two ways to learn it from data, and old texts.

    python examples/small_model/pretrain.py            # once: writes runs/small_model
    python examples/small_model/forgetting_data.py     # writes runs/forgetting_data, in about a minute

The new task is to be right: the problems are those of the texts, where every writer slips or ignores precedence.

    problems.jsonl   the new task, with its answers; heldout.jsonl has further problems of it
    gold.jsonl       the same problems solved as nobody in the texts does: products first, without slips, and
                     written in the notation of a writer who works from left to right
    own.jsonl        the same problems, each with a right answer of the model itself, where 8 tries held one
    short.jsonl      an old skill elsewhere: sums of 3 numbers
    long.jsonl       sums of 6 numbers
    early.jsonl      a product at the front, where every writer is right
    texts.jsonl      texts of the kind that the model was pretrained on, for their nats per token
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from texts import Chain, answer, draw_problem, draw_text, multiply_first, partial_results, show, solve

from klent.io.files import write_atomic

Row = dict[str, str]
TRIES, HELDOUT = 8, 60


def in_range(problem: Chain) -> bool:
    """Whether all partial results are in 0 .. 99, in either order of work."""
    _, numbers, signs = multiply_first(*problem)
    return all(0 <= v <= 99 for v in [*partial_results(*problem), *partial_results(numbers, signs)])


def draw(rng: random.Random, size: int, product_at: int | None) -> Chain:
    """A chain of this many numbers, with a product at this sign or none."""
    while True:
        numbers = [rng.randint(1, 9) for _ in range(size)]
        signs = [rng.choice("++-") for _ in range(size - 1)]
        if product_at is not None:
            signs[product_at] = "*"
        if in_range((numbers, signs)):
            return numbers, signs


KINDS: dict[str, Callable[[random.Random], Chain]] = {
    "problems": draw_problem,
    "short": lambda rng: draw(rng, 3, None),
    "long": lambda rng: draw(rng, 6, None),
    "early": lambda rng: draw(rng, 4, 0),
}


def distinct(kind: str, count: int) -> list[Chain]:
    """So many problems of a kind, no two alike."""
    rng, problems = random.Random(f"forgetting {kind}"), {}
    while len(problems) < count:
        problem = KINDS[kind](rng)
        problems.setdefault(show(problem), problem)
    return list(problems.values())


def gold(problem: Chain) -> str:
    """The products first and no slip, in notation a."""
    return "a" + solve(problem, "d", random.Random(0), slip=0.0)[1:].replace(";", ",")


def own_answers(model: str, problems: Sequence[Chain]) -> dict[str, str]:
    """For each problem that the model solves in some of its tries, the first right answer."""
    from klent.models.load import load_policy
    from klent.rollout.transformers_engine import SamplingOptions, TransformersEngine
    from klent.streams.prompt import Prompt

    engine = TransformersEngine(load_policy(model), SamplingOptions(max_tokens=48))
    prompts = [Prompt(show(problem), show(problem), {}) for problem in problems]
    right = {show(problem): f"#{answer(problem)}" for problem in problems}
    kept: dict[str, str] = {}
    for episode in engine.generate(prompts, group_size=TRIES, seed=0):
        if episode.finish == "stop" and episode.text.endswith(right[episode.prompt.id]):
            kept.setdefault(episode.prompt.id, episode.text)
    return kept


def write(file: Path, rows: Iterable[Row]) -> None:
    """Rows as JSON Lines."""
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Write every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="runs/small_model")
    parser.add_argument("--problems", type=int, default=600, help="of the new task")
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting_data"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count = options.problems
    drawn = {kind: distinct(kind, count + HELDOUT if kind == "problems" else 2 * HELDOUT) for kind in KINDS}
    problems, drawn["heldout"] = drawn["problems"][:count], drawn["problems"][count:]
    for kind, chains in (drawn | {"problems": problems}).items():
        write(options.out / f"{kind}.jsonl", ({"prompt": show(p), "answer": str(answer(p))} for p in chains))
    kept = own_answers(options.model, problems)
    for name, ways in (("gold", {show(p): gold(p) for p in problems}), ("own", kept)):
        rows = (
            {"prompt": show(p), "completion": ways[show(p)], "answer": str(answer(p))}
            for p in problems
            if show(p) in ways
        )
        write(options.out / f"{name}.jsonl", rows)
    rng = random.Random("forgetting texts")
    write(options.out / "texts.jsonl", ({"text": "".join(draw_text(rng))} for _ in range(300)))
    print(f"{options.out}: {len(problems)} problems, {len(kept)} of which the model solved in {TRIES} tries")


if __name__ == "__main__":
    main()

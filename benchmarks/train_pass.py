"""The training pass: a group's completions behind one shared prompt, against one padded row per completion.

    python benchmarks/train_pass.py            # about 3 minutes on 2 idle cores

Forward and backward of SmolLM2-135M-Instruct in float32 with log-probability and entropy of every
completion token, 8 groups of 8, as in `klent train` (`update.packing`), with the same head and the same
products in all rows:

    shared       the group in one row (`packing: auto`)
    padded       one row per completion, its prompt in front, with the same head and products (`packing: off`)
    plain torch  one padded row per completion, the model's own layers and logits of the completion tokens:
                 what trainers without a fused head do

`predicted` is the ratio of tokens that the body computes, counting the head's share as equal; `floor` is the
time of the shared pass's matrix products alone at the rate of the faster library on this machine.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from common import device_name, show, today, write  # noqa: E402

import klent  # noqa: E402
from klent.head.products import product  # noqa: E402
from klent.models.load import load_policy  # noqa: E402
from klent.policies.causal_lm.packing import Completion, make_groups, make_microbatches, pack  # noqa: E402
from klent.policies.causal_lm.policy import CausalPolicy  # noqa: E402
from klent.policies.causal_lm.probe import takes_shared_prompt  # noqa: E402

RESULTS = HERE / "results" / "train_pass_cpu.csv"
GROUP = 8
CASES = {  # tokens of a prompt, of a completion; groups
    "prompt 45, completion 12": (45, 12, 8),
    "prompt 200, completion 100": (200, 100, 2),
}
BUDGET = 4096  # tokens in a micro-batch: the recipe's default


def completions(prompt: int, length: int, groups: int, size: int) -> list[Completion]:
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> Tensor:
        return torch.randint(size, (count,), generator=generator)

    prompts = [tokens(prompt).tolist() for _ in range(groups)]
    return [Completion(i, prompts[i // GROUP], tokens(length)) for i in range(groups * GROUP)]


def passes(policy: CausalPolicy, items: list[Completion], *, shared: bool) -> Callable[[], int]:
    """One forward and backward over everything; returns the number of tokens that the body computed."""

    def run() -> int:
        policy.zero_grad(set_to_none=True)
        count = 0
        groups = make_groups(items, shared=shared, budget=BUDGET)
        for part in make_microbatches(groups, budget=BUDGET):
            rows = pack(part, shared=shared)
            stats = policy(rows)
            (stats.logp.sum() + 0.1 * stats.entropy.sum()).backward()
            count += rows.tokens
        return count

    return run


def plain(items: list[Completion]) -> Callable[[], int]:
    """The same quantities from the model as transformers loads it, on padded rows with full logits."""
    from transformers import AutoModelForCausalLM

    from klent.models.locate import locate_model

    model = AutoModelForCausalLM.from_pretrained(str(locate_model("smollm2-135m")), dtype=torch.float32)
    model.eval()

    def run() -> int:
        model.zero_grad(set_to_none=True)
        ids = torch.stack([torch.cat([torch.tensor(i.prompt_ids), i.tokens]) for i in items])
        count = len(items[0].tokens)
        rows = max(1, BUDGET // ids.shape[1])
        for part in ids.split(rows):
            logits = model(input_ids=part, logits_to_keep=count + 1, use_cache=False).logits[:, :-1]
            logp = logits.log_softmax(dim=-1)
            own = logp.gather(2, part[:, -count:, None])
            (own.sum() - 0.1 * (logp.exp() * logp).sum()).backward()
        return int(ids.numel())

    return run


def floor(policy: CausalPolicy, body: int, head: int) -> Callable[[], int]:
    """Three products per weight of the body and four per weight of the head, and nothing in between."""
    layers = [m.weight.detach() for m in policy.model.base_model.modules() if isinstance(m, torch.nn.Linear)]
    words = policy.model.get_output_embeddings().weight.detach()

    def products(rows: int, weight: Tensor, forwards: int) -> None:
        x, y = torch.ones(rows, weight.shape[1]), torch.ones(rows, weight.shape[0])
        for _ in range(forwards):
            product(x, weight)
        product(y, weight.T)
        product(y.T, x.T)

    def run() -> int:
        for weight in layers:
            products(body, weight, 1)
        for tile in words.split(1024):
            products(head, tile, 2)
        return body

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="CSV to write (replaced)")
    options = parser.parse_args()
    policy = CausalPolicy(load_policy("smollm2-135m").model, temperature=1.0)
    policy.train()
    takes_shared_prompt(policy, longest=300)  # and finds out whether its attention can be taken in blocks
    table = []
    for case, (prompt, length, groups) in CASES.items():
        items = completions(prompt, length, groups, 49152)
        runs = {
            "shared": passes(policy, items, shared=True),
            "padded": passes(policy, items, shared=False),
            "plain torch": plain(items),
        }
        times: dict[str, list[float]] = {name: [] for name in [*runs, "floor"]}
        tokens: dict[str, int] = {}
        for _ in range(options.repeats + 1):
            for name in times:
                run = runs.get(name) or floor(policy, tokens["shared"], len(items) * length)
                started = time.perf_counter()
                tokens[name] = run()
                times[name].append(time.perf_counter() - started)
        median = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first round warms up
        table += [
            {
                "case": case,
                "pass": name,
                "body_tokens": tokens[name],
                "seconds": round(median[name], 2),
                "shared_is_faster": round(median[name] / median["shared"], 2),
                "predicted": round(tokens[name] / tokens["shared"], 2),
                "ratio_to_floor": round(median[name] / median["floor"], 2),
                "repeats": options.repeats,
                "threads": torch.get_num_threads(),
                "device": device_name(),
                "torch": torch.__version__,
                "klent": klent.__version__,
                "date": today(),
            }
            for name in times
        ]
    show(table, ["case", "pass", "body_tokens", "seconds", "shared_is_faster", "predicted", "ratio_to_floor"])
    write(options.out, table)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    from klent.runs.process import keep_freed_memory

    keep_freed_memory()
    main()

"""What each mode of `rollout.mismatch` makes of a wrong sampler's gradient: every completion counted, none drawn.

    python examples/small_model/wrong_gradient.py        # a minute of one core; writes wrong_gradient.csv

A world is a Llama of two layers with random weights, the 4^6 completions of six tokens that it can write, and a
reward of 1 for half of them by chance. The trainer computes in float64. The sampler is a copy of the model in
bfloat16, or with its layers rounded to 4 or 3 bits (worse_copies.py), and reports the log-probabilities that it
samples from. g is the expected gradient of REINFORCE with the sampler's mean reward as baseline, in the logits at
every prefix, weighed as a mode weighs; e is the same where the policy samples itself.

    along        <g, e> / |e|^2           1 = as long in the right direction
    bias         |g - e|^2 / |e|^2        0 = none
    direction    the cosine between g and e
    noise        the variance of one completion's gradient, over that of the policy's own

Numbers are means over worlds with 95 % intervals, Student's t; of the noise, which has large values, geometric ones.
"""

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from worse_copies import worse_copy

HERE = Path(__file__).resolve().parent
FILE = HERE / "wrong_gradient.csv"
TOKENS, LENGTH = 4, 6
COPIES = ("bfloat16", "int4", "int3")
MODES = ("none", "truncate", "mask_token", "mask_sequence", "icepop", "whole completion")
"""Those of klent between no weight at all and the exact weight of the whole completion, without bounds."""


class World(NamedTuple):
    """Every completion that there is.

    Attributes:
        tokens: ``[N, T]``.
        prefix: the number of what stands before each token, ``[N, T]``.
        policy: log-probabilities of all tokens at each prefix under the trainer, ``[N, T, V]``, nats.
        sampler: the same under each copy.
        reward: ``[N]``.
    """

    tokens: Tensor
    prefix: Tensor
    policy: Tensor
    sampler: dict[str, Tensor]
    reward: Tensor

    def chosen(self, logp: Tensor) -> Tensor:
        """Of the tokens that were taken, ``[N, T]``."""
        return logp.gather(2, self.tokens[:, :, None])[:, :, 0]


@torch.no_grad()
def build(seed: int) -> World:
    """The world of a seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=TOKENS + 1,  # and one that begins
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    tokens = torch.tensor(list(product(range(TOKENS), repeat=LENGTH)))
    read = torch.cat([torch.full((len(tokens), 1), TOKENS), tokens[:, :-1]], dim=1)

    def logp(of: torch.nn.Module) -> Tensor:
        return of(read).logits[:, :, :TOKENS].double().log_softmax(-1)

    sampler = {how: logp(worse_copy(model, how)) for how in COPIES}
    depth = torch.arange(LENGTH)
    level = (TOKENS**depth - 1) // (TOKENS - 1)  # prefixes that are shorter
    place = torch.zeros_like(tokens)
    for t in range(1, LENGTH):
        place[:, t] = place[:, t - 1] * TOKENS + tokens[:, t - 1]
    reward = torch.zeros(len(tokens), dtype=torch.float64)
    reward[torch.randperm(len(tokens))[: len(tokens) // 2]] = 1.0
    return World(tokens, level + place, logp(model.double()), sampler, reward)


def weight_of(mode: str, logp: Tensor, logp_gen: Tensor) -> Tensor:
    """The weight of each token, ``[N, T]``."""
    from klent.config.mismatch import MODES as BOUNDS
    from klent.objectives import importance_weight

    mask = torch.ones_like(logp, dtype=torch.bool)
    if mode == "none":
        return torch.ones_like(logp)
    if mode == "whole completion":
        return importance_weight(logp, logp_gen, mask, ratio="sequence", high=math.inf)
    ratio, outside, low, high = BOUNDS[mode]
    return importance_weight(logp, logp_gen, mask, ratio=ratio, low=low, high=high, outside=outside)


def gradient(world: World, sampler: Tensor, mode: str) -> tuple[Tensor, float]:
    """The expected gradient in the logits at each prefix, ``[P, V]``, and the variance of one completion's."""
    logp, logp_gen = world.chosen(world.policy), world.chosen(sampler)
    chance = logp_gen.sum(1).exp()
    advantage = world.reward - (chance * world.reward).sum()
    force = weight_of(mode, logp, logp_gen) * advantage[:, None]
    score = torch.nn.functional.one_hot(world.tokens, TOKENS) - world.policy.exp()
    each = force[:, :, None] * score
    mean = torch.zeros(int(world.prefix.max()) + 1, TOKENS, dtype=torch.float64)
    mean.index_add_(0, world.prefix.flatten(), (chance[:, None, None] * each).flatten(0, 1))
    second = (chance * each.square().sum((1, 2))).sum()  # a completion passes each prefix once
    return mean, float(second - mean.square().sum())


def measure(world: World) -> list[dict[str, float | str]]:
    """Every sampler and mode in one world."""
    own, own_noise = gradient(world, world.policy, "none")
    size = own.square().sum()
    rows: list[dict[str, float | str]] = []
    for how, sampler in world.sampler.items():
        chance = world.chosen(sampler).sum(1).exp()
        apart = (world.chosen(world.policy) - world.chosen(sampler)).abs().mean(1)
        for mode in MODES:
            found, noise = gradient(world, sampler, mode)
            rows.append(
                {
                    "sampler": how,
                    "mode": mode,
                    "gap": float((chance * apart).sum()),
                    "along": float((found * own).sum() / size),
                    "bias": float((found - own).square().sum() / size),
                    "noise": noise / own_noise,
                }
            )
    return rows


def read() -> list[dict[str, str]]:
    """The committed numbers."""
    with open(FILE, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def table(rows: Sequence[dict[str, str]]) -> str:
    """One line per sampler and mode."""
    lines = [
        "| sampler, nats per token off | weights | along | bias | direction | direction, less without | noise |",
        "|---" * 7 + "|",
    ]
    for how, mode in dict.fromkeys((row["sampler"], row["mode"]) for row in rows):
        turned = direction(rows, how, mode)
        cells = [
            shown(column(rows, how, mode, "along"), ".3f"),
            shown(column(rows, how, mode, "bias"), ".2g"),
            shown(turned, ".4f" if how == "bfloat16" else ".3f"),
            "" if mode == "none" else shown(turned - direction(rows, how, "none"), "+.2g"),
            shown(np.log(column(rows, how, mode, "noise")), ".2f", np.exp),
        ]
        gap = column(rows, how, mode, "gap").mean()
        name = mode if mode in ("none", "whole completion") else f"`{mode}`"
        lines.append(f"| {how}, {gap:.2g} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def column(rows: Sequence[dict[str, str]], how: str, mode: str, key: str) -> np.ndarray:
    """One number of a sampler and mode, by world."""
    return np.array([float(row[key]) for row in rows if (row["sampler"], row["mode"]) == (how, mode)])


def direction(rows: Sequence[dict[str, str]], how: str, mode: str) -> np.ndarray:
    """The cosine between g and e, by world."""
    along, bias = column(rows, how, mode, "along"), column(rows, how, mode, "bias")
    return along / np.sqrt(bias + 2 * along - 1)  # |g|^2 = |g - e|^2 + 2 <g, e> - |e|^2


def shown(values: np.ndarray, form: str, back: Callable[[float], float] = float) -> str:
    """Mean and interval over worlds, on the scale that ``back`` leads to; 0 where all is rounding."""
    from klent.kit.student import t_bound

    half = t_bound(0.05, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    middle, low, high = (back(float(values.mean() + k * half)) for k in (0, -1, 1))
    if max(abs(low), abs(high)) < 1e-12:
        return "0"
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def main() -> None:
    """Measure every world, write the file and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=24, help="worlds")
    parser.add_argument("--out", type=Path, default=FILE, help="CSV to write (replaced)")
    options = parser.parse_args()
    rows = [
        {
            "seed": str(seed),
            **{key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()},
        }
        for seed in range(options.seeds)
        for row in measure(build(seed))
    ]
    with open(options.out, "w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()

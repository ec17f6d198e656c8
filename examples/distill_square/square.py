"""The square of distillation, measured: whose prefixes (alpha) times which divergence, in a world of 256 sequences.

    python examples/distill_square/square.py                     # 20 seeds; writes results/square.csv
    python examples/distill_square/square.py --seeds 3 --steps 50 --out /tmp/square.csv

A teacher answers with one of 8 right sequences of 4 symbols 7 times in 10, else with noise; it reads the whole
prefix. The student knows the position and reads the last symbol alone, so that it cannot become the teacher: which
errors it makes is what the square decides. Each step draws 16 sequences from student^alpha · teacher^(1 - alpha),
token by token, and takes an Adam step on the mean over their tokens of the divergence, as `rollout.mixture.distill`
does. Rows beyond the square: forward KL added where the teacher's entropy is above 0.7 nats, and the loss of one
sampled token, with its exact mean as the baseline and without.

What is measured at the end is exact, over all 256 sequences: KL both ways between whole sequences, the student's
entropy, its chance of a right answer, and the share of the right answers that 32 samples find. Each seed has a
teacher, a student and draws of its own, the same for every row. Intervals are 95 % over seeds, Student's t.
"""

import argparse
import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from klent import mixture, objectives
from klent.head.divergence import DivergenceKind, Head, token_divergence
from klent.kit.student import t_bound

SYMBOLS, LENGTH, RIGHT, SAMPLES, TRIES, UNSURE = 4, 4, 8, 16, 32, 0.7
SEQUENCES = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))  # [256, 4]
OFFSETS = [sum(SYMBOLS**t for t in range(length)) for length in range(LENGTH)]
#: the prefix before each token of each sequence, [256, 4]; there are 85
STATES = torch.stack(
    [OFFSETS[t] + torch.arange(SYMBOLS**LENGTH) // SYMBOLS ** (LENGTH - t) for t in range(LENGTH)], dim=1
)
#: what the student sees of each prefix, its length and last symbol, numbered, [85]
SEEN = torch.tensor(
    [0, *(1 + (t - 1) * SYMBOLS + i % SYMBOLS for t in range(1, LENGTH) for i in range(SYMBOLS**t))]
)
ALPHAS = (0.0, 0.5, 1.0)
RATE = 0.05

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Student's logits, teacher's logits and symbol of each token, ``[N, ...]`` -> a loss per token, ``[N]``."""


def divergence(kind: DivergenceKind, above: float | None = None) -> Loss:
    """The divergence over the whole vocabulary."""

    def loss(student: Tensor, teacher: Tensor, symbol: Tensor) -> Tensor:
        unit = torch.eye(SYMBOLS, dtype=student.dtype)
        return token_divergence(
            Head(student, unit), Head(teacher, unit), divergence=kind, forward_above=above
        )  # type: ignore[arg-type]

    return loss


def sampled(baseline: Literal["exact", "none"]) -> Loss:
    """The loss of the sampled symbol; its weight under a mixture is 1, so alpha has to be 1."""

    def loss(student: Tensor, teacher: Tensor, symbol: Tensor) -> Tensor:
        own, theirs = student.log_softmax(-1), teacher.log_softmax(-1)
        logp, target = (x.gather(1, symbol[:, None]).T for x in (own, theirs))
        mean = (own.exp() * (own - theirs)).sum(-1)[None]
        mask = torch.ones_like(logp, dtype=torch.bool)
        out = objectives.sampled_distill(logp, logp.detach(), target, mean, mask, baseline=baseline)
        return out.loss[0]

    return loss


ROWS: dict[str, tuple[tuple[float, ...], Loss]] = {
    "reverse": (ALPHAS, divergence("reverse")),
    "forward": (ALPHAS, divergence("forward")),
    "jeffreys": (ALPHAS, divergence("jeffreys")),
    "reverse, forward where unsure": (ALPHAS, divergence("reverse", UNSURE)),
    "sampled, exact baseline": ((1.0,), sampled("exact")),
    "sampled, no baseline": ((1.0,), sampled("none")),
}
"""Divergence -> the alphas that it is tried with, and its loss."""


class World(NamedTuple):
    """Logits of the teacher ``[S, 85, 4]`` and of the student at first ``[S, 13, 4]``; right answers ``[S, 8]``."""

    teacher: Tensor
    student: Tensor
    right: Tensor


def make_world(seeds: int) -> World:
    """One teacher and one student for each seed."""
    worlds = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(SEQUENCES), generator=generator, dtype=torch.float64).softmax(-1)
        right = torch.randperm(len(SEQUENCES), generator=generator)[:RIGHT]
        chance = (0.3 * noise).index_add(0, right, torch.full((RIGHT,), 0.7 / RIGHT, dtype=torch.float64))
        table = torch.zeros(len(SEEN), SYMBOLS, dtype=torch.float64)
        for t in range(LENGTH):
            table.index_put_((STATES[:, t], SEQUENCES[:, t]), chance, accumulate=True)
        student = 0.5 * torch.randn(int(SEEN.max()) + 1, SYMBOLS, generator=generator, dtype=torch.float64)
        worlds.append((table.log(), student, right))
    return World(*(torch.stack(parts) for parts in zip(*worlds, strict=True)))


def sequence_logp(logits: Tensor) -> Tensor:
    """Log-probabilities of all sequences, ``[S, 256]``."""
    return logits.log_softmax(-1)[:, STATES, SEQUENCES].sum(-1)


def train(world: World, alpha: float, loss: Loss, steps: int) -> Tensor:
    """The student's logits after training, ``[S, 85, 4]``."""
    student = world.student.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=RATE)
    generator = torch.Generator().manual_seed(0)
    seed = torch.arange(len(student))[:, None, None]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        logits = student[:, SEEN]
        q = sequence_logp(mixture.geometric_mixture(logits.detach(), world.teacher, alpha)).exp()
        drawn = torch.multinomial(q, SAMPLES, replacement=True, generator=generator)  # [S, samples]
        states, symbols = STATES[drawn], SEQUENCES[drawn].flatten()
        each = loss(logits[seed, states].flatten(0, 2), world.teacher[seed, states].flatten(0, 2), symbols)
        optimizer.zero_grad()
        (each.sum() / (SAMPLES * LENGTH)).backward()
        optimizer.step()
    return student.detach()[:, SEEN]


def measures(world: World, student: Tensor) -> dict[str, Tensor]:
    """Exact numbers of each seed, ``[S]``."""
    p, t = sequence_logp(student), sequence_logp(world.teacher)
    right = p.exp().gather(1, world.right)
    return {
        "kl_student_teacher": (p.exp() * (p - t)).sum(-1),
        "kl_teacher_student": (t.exp() * (t - p)).sum(-1),
        "entropy": -(p.exp() * p).sum(-1),
        "right": right.sum(-1),
        "found": (1 - (1 - right) ** TRIES).mean(-1),
    }


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean and its 95 % interval."""
    half = t_bound(0.05, len(values) - 1) * values.std().item() / math.sqrt(len(values))
    mean = values.mean().item()
    return mean, mean - half, mean + half


def square(seeds: int, steps: int) -> list[dict[str, str]]:
    """One row for each cell: means with intervals, and those of the difference from reverse at alpha 1."""
    world = make_world(seeds)
    cells = {
        (kind, alpha): measures(world, train(world, alpha, loss, steps))
        for kind, (alphas, loss) in ROWS.items()
        for alpha in alphas
    }
    first = cells["reverse", 1.0]
    rows = []
    for (kind, alpha), found in cells.items():
        row = {"divergence": kind, "alpha": f"{alpha:g}", "seeds": str(seeds), "steps": str(steps)}
        for name, values in found.items():
            for column, numbers in ((name, values), (f"{name}_difference", values - first[name])):
                ends = zip(("", "_low", "_high"), interval(numbers), strict=True)
                row |= {f"{column}{end}": f"{value:.4f}" for end, value in ends}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "square.csv")
    options = parser.parse_args()
    rows = square(options.seeds, options.steps)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

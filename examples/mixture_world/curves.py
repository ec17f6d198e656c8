"""Learning curves for equal numbers of samples, by sampling distribution.

    python examples/mixture_world/curves.py                  # 20 seeds, some minutes; CSV files and a picture
    python examples/mixture_world/curves.py --table          # the table of docs/mixture.md, from these files
    python examples/mixture_world/curves.py --seeds 3 --steps 50 --out /tmp/quick

The world can be enumerated. A problem asks for a sequence of 4 symbols out of 4, and one of the 256 is right;
the policy has separate logits for each of the 85 prefixes. Every arm sees the same number of samples per
step, takes a plain gradient step with the exact value as a baseline, and has the best of several learning
rates, chosen on separate seeds; a grid of rates that ends at an arm's best one is refused. The only
difference is the sampling distribution:

    on-policy             the policy
    teacher, weights      the teacher, each sequence weighted by policy/teacher
    alpha 0.5             policy^0.5 · teacher^0.5 at every token, weighted
    Chernoff              the same with alpha where both KLs are equal, token by token
    ESS                   the same with alpha where a token's effective sample size is 0.8
    least variance        the best q over whole sequences, for which all 256 must be known, weighted
    alpha 0.5, unweighted the mixture as if it were the policy
    imitation             maximum likelihood on the teacher's sequences; looks at no reward

Rewards are exact expectations. Intervals are 95 % over seeds, Student's t: of means, and of the ratio of two
means (on-policy's samples over the arm's, paired by seed).
"""

import argparse
import csv
import itertools
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from klent import mixture
from klent.kit.grid import grid_optimum
from klent.kit.statistics import ratio_of_means
from klent.kit.student import t_bound

SYMBOLS, LENGTH, PROBLEMS, SAMPLES = 4, 4, 8, 4
SEQUENCES = torch.tensor(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))  # [256, 4]
WIDTHS = [SYMBOLS**t for t in range(LENGTH)]  # prefixes of each length
OFFSETS = [sum(WIDTHS[:t]) for t in range(LENGTH)]
PREFIXES = sum(WIDTHS)
#: the row of a policy's table for each token of each sequence, [256, 4]
STATES = torch.stack(
    [OFFSETS[t] + torch.arange(SYMBOLS**LENGTH) // SYMBOLS ** (LENGTH - t) for t in range(LENGTH)], dim=1
)
RIGHT, DECOY = 27, 228  # 0123 and 3210: they part at the first symbol
RATES = tuple(4.0**k for k in range(-2, 9))
FIRST_RATE = 64.0  # tried first: near the best one of most arms
GOAL, TOKEN_ESS, TUNING_SEEDS = 0.8, 0.8, 1000

ARMS = (
    "on-policy",
    "teacher, weights",
    "alpha 0.5",
    "Chernoff",
    "ESS",
    "least variance",
    "alpha 0.5, unweighted",
    "imitation",
)


class World(NamedTuple):
    """The policy's initial probability of the right sequence; the teacher's favourite and its probability."""

    policy: float
    favourite: int
    teacher: float


WORLDS = {
    "rare success, good teacher": World(0.004, RIGHT, 0.7),
    "able policy, good teacher": World(0.1, RIGHT, 0.7),
    "able policy, misleading teacher": World(0.1, DECOY, 0.7),
}


def start(world: World, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Logits of policy and teacher, ``[seeds * problems, prefixes, symbols]``."""
    tables = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(2, PROBLEMS, PREFIXES, SYMBOLS, generator=generator, dtype=torch.float64)
        policy = lean(0.7 * noise[0], RIGHT, world.policy)
        tables.append((policy, lean(policy + 0.5 * noise[1], world.favourite, world.teacher)))
    policies, teachers = zip(*tables, strict=True)
    return torch.cat(policies), torch.cat(teachers)


def lean(logits: Tensor, sequence: int, chance: float) -> Tensor:
    """Shift the logits along a sequence so that its probability is ``chance``, equally over its tokens."""
    logits, each = logits.clone(), chance ** (1 / LENGTH)
    for state, symbol in zip(STATES[sequence], SEQUENCES[sequence], strict=True):
        others = logits[:, state].index_fill(1, symbol, -math.inf).logsumexp(-1)
        logits[:, state, symbol] = others + math.log(each / (1 - each))
    return logits


def sequence_logp(logp: Tensor) -> Tensor:
    """Log-probabilities of all sequences, ``[R, 256]``."""
    return logp[:, STATES, SEQUENCES].sum(-1)


def proposal(arm: str, policy: Tensor, teacher: Tensor) -> Tensor:
    """Log-probability of every sequence under what the arm draws from, ``[R, 256]``."""
    if arm == "on-policy":
        return sequence_logp(policy.log_softmax(-1))
    if arm in ("teacher, weights", "imitation"):
        return sequence_logp(teacher.log_softmax(-1))
    if arm.startswith("alpha 0.5"):
        return sequence_logp(mixture.geometric_mixture(policy, teacher, 0.5))
    if arm == "Chernoff":
        return sequence_logp(mixture.solve_alpha(policy, teacher, tolerance=1e-4).log_q)
    if arm == "ESS":
        found = mixture.solve_alpha(policy, teacher, criterion="ess", value=TOKEN_ESS, tolerance=1e-4)
        return sequence_logp(found.log_q)
    return least_variance(policy.log_softmax(-1)).log()


def least_variance(logp: Tensor) -> Tensor:
    """q ∝ p·|advantage|·‖gradient of log p‖ over sequences, ``[R, 256]``."""
    p = sequence_logp(logp).exp()
    token = logp.exp()
    # ‖e_y - p‖² = 1 - 2·p_y + Σ p² at each prefix; the gradient of a sequence has one such piece per token.
    piece = 1 - 2 * token[:, STATES, SEQUENCES] + token.square().sum(-1)[:, STATES]
    advantage = torch.zeros_like(p).index_fill(1, torch.tensor(RIGHT), 1.0) - p[:, RIGHT : RIGHT + 1]
    field = advantage * piece.sum(-1).sqrt()
    return mixture.variance_optimal(p, field.unsqueeze(-1))


def train(
    arm: str, world: World, rate: float, seeds: Sequence[int], steps: int, to_beat: float = 0.0
) -> tuple[Tensor, Tensor, float]:
    """Expected reward before each step and after the last, effective sample size, and a score of the rate.

    Reward is ``[steps + 1, seeds]``. The effective sample size is 1 / Σ policy²/q over whole sequences,
    before the first step, ``[seeds]``. The score, from 0 to 1, is the mean over steps of what the arm
    strives for: the reward, or, where it looks at none, the likeness exp(-KL(teacher ‖ policy)). Where it
    cannot come to ``to_beat`` any more, whatever follows, training ends and the rest counts as 1.
    """
    policy, teacher = start(world, seeds)
    generator = torch.Generator().manual_seed(seeds[0])
    rewards, ess, lost = [], torch.zeros(0), 0.0
    log_t = sequence_logp(teacher.log_softmax(-1))
    for step in range(steps + 1):
        logp = policy.log_softmax(-1)
        log_p = sequence_logp(logp)
        success = log_p[:, RIGHT].exp()
        rewards.append(success.view(len(seeds), PROBLEMS).mean(1))
        kl = (log_t.exp() * (log_t - log_p)).sum(-1)
        lost += 1 - (kl.neg().exp() if arm == "imitation" else success).mean().item()
        if lost > (1 - to_beat) * (steps + 1):
            break
        log_q = proposal(arm, policy, teacher)
        if step == 0:
            ess = (-(2 * log_p - log_q).logsumexp(-1)).exp().view(len(seeds), PROBLEMS).mean(1)
        drawn = torch.multinomial(log_q.exp(), SAMPLES, replacement=True, generator=generator)  # [R, samples]
        if arm == "imitation":
            coefficient = torch.ones(drawn.shape, dtype=policy.dtype)
        else:
            advantage = (drawn == RIGHT).to(policy.dtype) - success.unsqueeze(-1)
            log_weight = (log_p - log_q).gather(1, drawn)
            coefficient = advantage if arm.endswith("unweighted") else log_weight.exp() * advantage
        policy = policy + rate * gradient(logp.exp(), drawn, coefficient / SAMPLES)
    return torch.stack(rewards), ess, 1 - lost / (steps + 1)


def gradient(p: Tensor, drawn: Tensor, coefficient: Tensor) -> Tensor:
    """Σ coefficient·∇log p(sequence), in the logits of every prefix."""
    row = torch.arange(len(p)).view(-1, 1, 1).expand(*drawn.shape, LENGTH)
    push = torch.zeros_like(p)
    at = (row, STATES[drawn], SEQUENCES[drawn])
    push.index_put_(at, coefficient.unsqueeze(-1).expand(row.shape), accumulate=True)
    return push - push.sum(-1, keepdim=True) * p


class Curve(NamedTuple):
    """An arm's result in a world: a rate and what :func:`train` gives with it."""

    rate: float
    reward: Tensor
    ess: Tensor
    score: float = 0.0

    def samples_to_goal(self) -> Tensor:
        """Samples per problem after which the reward stays at or above GOAL, or all of them; ``[seeds]``."""
        steps = torch.arange(1, len(self.reward) + 1).unsqueeze(1)
        stays = (steps * (self.reward < GOAL)).amax(0)  # the first step after the last one below the goal
        return SAMPLES * stays.clamp(max=len(self.reward) - 1).double()


def best_curve(arm: str, world: World, seeds: int, steps: int) -> Curve:
    """The learning rate with the largest score on five other seeds, then all seeds with it."""
    tuning = range(TUNING_SEEDS, TUNING_SEEDS + 5)
    score: dict[float, float] = {}
    for rate in sorted(RATES, key=lambda rate: abs(math.log(rate / FIRST_RATE))):
        score[rate] = train(arm, world, rate, tuning, steps, max(score.values(), default=0.0))[2]
    rate = RATES[grid_optimum(RATES, [score[rate] for rate in RATES], best="largest")]
    return Curve(rate, *train(arm, world, rate, range(seeds), steps))


def interval(values: Tensor) -> tuple[float, float, float]:
    """Mean and its 95 % interval over the last axis, ``[n]``."""
    n = len(values)
    half = student(n - 1) * values.std().item() / math.sqrt(n)
    mean = values.mean().item()
    return mean, mean - half, mean + half


@cache
def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    return t_bound(0.05, freedom)


def write(out: Path, curves: dict[str, dict[str, Curve]]) -> None:
    """``curves.csv``: reward by samples; ``summary.csv``: one row per arm."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "curves.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["world", "arm", "samples", "reward", "low", "high"])
        for name, arms in curves.items():
            for arm, curve in arms.items():
                for step in range(0, len(curve.reward), 5):
                    values = [f"{value:.4f}" for value in interval(curve.reward[step])]
                    table.writerow([name, arm, SAMPLES * step, *values])
    with (out / "summary.csv").open("w", newline="") as file:
        table = csv.writer(file)
        columns = ["samples_to_goal", "on_policy_over_it", "reward_at_end"]
        spread = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
        table.writerow(["world", "arm", "seeds", "learning_rate", "ess_at_first", "reached", *spread])
        for name, arms in curves.items():
            own = arms["on-policy"].samples_to_goal().tolist()
            for arm, curve in arms.items():
                needed = curve.samples_to_goal()
                saved = ratio_of_means(own, needed.tolist())
                numbers = [*interval(needed), *saved, *interval(curve.reward[-1])]
                reached = (curve.reward[-1] >= GOAL).double().mean().item()
                ess = curve.ess.mean().item()
                head = [name, arm, len(needed), curve.rate, f"{ess:.3f}", f"{reached:.2f}"]
                table.writerow([*head, *(f"{value:.3f}" for value in numbers)])


def table(summary: Path) -> str:
    """The rows of ``summary.csv`` in Markdown, as docs/mixture.md shows them."""
    lines = [
        "| world, what is drawn | learning rate | ESS | samples to 0.8 | ratio | reward at the end |",
        "|---|---|---|---|---|---|",
    ]
    world = ""
    with summary.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["world"] != world:
                world = row["world"]
                lines.append(f"| **{world}** | | | | | |")
            reached = float(row["reached"])
            samples = _bracketed(row, "samples_to_goal", 0) if reached else "never"
            if 0 < reached < 1:
                samples += f" ({reached:.0%} got there)"
            ratio = (
                "" if row["arm"] == "on-policy" or not reached else _bracketed(row, "on_policy_over_it", 2)
            )
            cells = [row["arm"], f"{float(row['learning_rate']):g}", f"{float(row['ess_at_first']):.2f}"]
            lines.append(f"| {' | '.join([*cells, samples, ratio, _bracketed(row, 'reward_at_end', 3)])} |")
    return "\n".join(lines) + "\n"


def _bracketed(row: dict[str, str], column: str, digits: int) -> str:
    value, low, high = (float(row[column + end]) for end in ("", "_low", "_high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def draw_picture(path: Path, curves: dict[str, dict[str, Curve]]) -> None:
    """One panel per world: means and intervals against samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4.4 * len(curves), 4), sharey=True)
    for axis, (name, arms) in zip(axes, curves.items(), strict=True):
        for arm, curve in arms.items():
            samples = [SAMPLES * step for step in range(1, len(curve.reward))]
            mean, low, high = zip(*(interval(reward) for reward in curve.reward[1:]), strict=True)
            (line,) = axis.plot(samples, mean, label=arm, linewidth=1.5)
            axis.fill_between(samples, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(title=name, xlabel="samples of each problem", xscale="log", ylim=(0, 1.02))
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("expected reward")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="lower center", ncol=len(ARMS), fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder for CSV files"
    )
    parser.add_argument(
        "--table", action="store_true", help="train nothing: print the table of an earlier --out in Markdown"
    )
    parser.add_argument("--picture", type=Path, help="PNG to write; default: curves.png beside the CSV files")
    options = parser.parse_args()
    if options.table:
        print(table(options.out / "summary.csv"), end="")
        return
    curves: dict[str, dict[str, Curve]] = {}
    for name, world in WORLDS.items():
        for arm in ARMS:
            curve = best_curve(arm, world, options.seeds, options.steps)
            curves.setdefault(name, {})[arm] = curve
            needed, reward = interval(curve.samples_to_goal())[0], curve.reward[-1].mean()
            print(
                f"{name:34}{arm:24}rate {curve.rate:5g}  samples {needed:6.0f}  reward {reward:.3f}",
                flush=True,
            )
    write(options.out, curves)
    draw_picture(options.picture or options.out / "curves.png", curves)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

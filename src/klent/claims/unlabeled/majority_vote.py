"""Semantic entropy as a reward."""

import math
from functools import cache

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import SEEDS, Claim, Figure, Figures, Judgement, RealRuns, number, over_seeds
from klent.claims.sources import EMPO, READING_NOTES
from klent.claims.worlds.simplex import draw_groups, random_logits

_PROMPTS, _ANSWERS, _GROUP, _STEPS, _LR = 100, 12, 8, 150, 1.0
#: nats: prompts whose semantic entropy is outside the two bounds are left out
THRESHOLDS: dict[str, tuple[float | None, float | None]] = {
    "EMPO": (None, None),
    "EMPO with the released threshold": (None, math.log(_GROUP)),
    "EMPO with thresholds": (0.1, 1.5),
    "EMPO with tight thresholds": (0.5, 1.5),
}


def measure() -> dict[str, Figure]:
    logits = start()
    figures = {
        "accuracy of the most frequent answer before": split(modal(logits)),
        "pass@1 before": split(pass_at(logits, 1)),
        "pass@8 before": split(pass_at(logits, 8)),
    }
    for name in ("gold", "EMPO", "EMPO with thresholds", "random"):
        trained = train(name)
        label = name if "EMPO" in name else f"{name} (control)"
        figures[f"pass@1, {label}"] = split(pass_at(trained, 1))
        figures[f"pass@8, {label}"] = split(pass_at(trained, 8))
    return figures


def start() -> Tensor:
    """Prompts of all seeds; the right answer, number 0, is the likeliest on about half of them."""
    logits = torch.cat([random_logits(seed, _PROMPTS, _ANSWERS) for seed in SEEDS])
    logits[:, 0] += 1.6
    return logits


def train(reward: str, steps: int = _STEPS) -> Tensor:
    """The logits after some of the steps of :func:`path`."""
    return path(reward)[steps]


@cache
def path(reward: str) -> list[Tensor]:
    """REINFORCE with group advantages on separate logits for each prompt: the logits at first and after each step."""
    generator = torch.Generator().manual_seed(1)
    logits = start()
    group = torch.arange(len(logits)).repeat_interleave(_GROUP)
    mask = torch.ones(len(group), 1, dtype=torch.bool)
    seen = [logits]
    for _ in range(_STEPS):
        logp = logits.log_softmax(-1)
        p = logp.exp()
        answer = draw_groups(p, _GROUP, generator).flatten()
        advantage = O.group_advantage(_reward(reward, answer, group, generator), group)
        sampled = logp[group, answer].unsqueeze(1).requires_grad_()
        loss = O.reinforce(sampled, advantage.unsqueeze(1), mask).loss
        (slope,) = torch.autograd.grad(loss.sum() / _GROUP, sampled)
        step = torch.zeros_like(logits).index_put_((group, answer), slope[:, 0], accumulate=True)
        total = step.sum(1, keepdim=True)
        logits = logits - _LR * (step - total * p)
        seen.append(logits)
    return seen


def _reward(name: str, answer: Tensor, group: Tensor, generator: torch.Generator) -> Tensor:
    if name == "gold":
        return (answer == 0).double()
    if name == "random":
        return torch.rand(answer.shape, generator=generator, dtype=torch.float64).round()
    low, high = THRESHOLDS[name]
    return O.empo_reward(answer, group, low=low, high=high).double()


def pass_at(logits: Tensor, k: int) -> Tensor:
    """Chance that at least one of k answers is right, exactly."""
    return 1 - (1 - logits.softmax(-1)[:, 0]) ** k


def modal(logits: Tensor) -> Tensor:
    return (logits.argmax(-1) == 0).double()


def split(values: Tensor) -> Figure:
    return over_seeds(values.view(len(SEEDS), _PROMPTS).mean(1).tolist())


def judge(f: Figures) -> Judgement:
    modal = f["accuracy of the most frequent answer before"].value
    gold, empo = f["pass@1, gold (control)"].value, f["pass@1, EMPO"].value
    before, after = f["pass@8 before"].value, f["pass@8, EMPO"].value
    thresholds, random = f["pass@8, EMPO with thresholds"].value, f["pass@8, random (control)"].value
    if empo > gold - 0.05:
        return "holds", f"pass@1 {number(empo)} beside {number(gold)} with the right answers"
    if abs(empo - modal) > 0.1:
        return "refuted", f"pass@1 ends at {number(empo)}, far from the majority's {number(modal)}"
    return "holds when", (
        f"the majority is right: pass@1 rises to {number(empo)}, the share of prompts whose most frequent "
        f"answer was right before ({number(modal)}), not to {number(gold)} as with gold rewards; pass@8 "
        f"falls from {number(before)} to {number(after)}, and with thresholds to {number(thresholds)} (with "
        f"random rewards, which teach nothing, it ends at {number(random)}: part of that fall is noise)"
    )


CLAIM = Claim(
    id="semantic-reward",
    subject="unlabeled",
    statement="Semantic entropy as the only reward makes answers more accurate, competitive with rewards "
    "from the right answers; thresholds on the entropy keep it from being gamed.",
    source=f"{EMPO}; {READING_NOTES.at('EMPO')}",
    experiment="500 prompts (5 seeds) with 12 answers and separate logits; 150 steps with groups of 8; "
    "exact pass@k",
    control="gold rewards; random rewards; pass@8 beside pass@1",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "unsupervised.md#empo-on-smollm2-135m",
        "agree",
        "the vote of SmolLM2-135M is mostly wrong, and EMPO taught it wrong answers in every seed",
    ),
)

"""The covariance theorem."""

from typing import Literal

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, RealRuns, number
from klent.claims.sources import ENTROPY_ESSAY, ENTROPY_MECHANISM, READING_NOTES
from klent.claims.worlds.simplex import random_logits

_ACTIONS, _WORLDS = 50, 100
Form = Literal["natural", "plain"]
_STEPS: dict[Form, tuple[float, float]] = {"natural": (1e-3, 1.0), "plain": (1e-3, 50.0)}


def measure() -> dict[str, Figure]:
    figures = {}
    for form, steps in _STEPS.items():
        for step in steps:
            figures[f"{form}: error of the predicted change, step {step:g}"] = Figure(_error(form, step))
    figures["natural law for a plain step of 0.001 (control)"] = Figure(_error("plain", 1e-3, law="natural"))
    figures["plain law for a step on weights that 50 actions share (control)"] = Figure(_shared_error())
    return figures


def _error(form: Form, step: float, law: Form | None = None) -> float:
    """Median relative error of the predicted entropy change over random worlds."""
    logits, advantage = random_logits(0, _WORLDS, _ACTIONS), random_logits(1, _WORLDS, _ACTIONS)
    logp = logits.log_softmax(-1)
    predicted = O.predicted_entropy_change(logp, advantage, step=step, gradient=law or form)
    change = advantage - (logp.exp() * advantage).sum(-1, keepdim=True)
    return _median(predicted, _measured(logits, step * (logp.exp() * change if form == "plain" else change)))


def _shared_error() -> float:
    """The same where logits are linear in 8 weights, so that the step of one action moves the others."""
    weights, features = random_logits(0, _WORLDS, 8), random_logits(2, _ACTIONS, 8)
    logits, advantage = weights @ features.T, random_logits(1, _WORLDS, _ACTIONS)
    logp = logits.log_softmax(-1)
    slope = logp.exp() * (advantage - (logp.exp() * advantage).sum(-1, keepdim=True))
    predicted = O.predicted_entropy_change(logp, advantage, step=1e-4, gradient="plain")
    return _median(predicted, _measured(logits, 1e-4 * (slope @ features) @ features.T))


def _measured(logits: Tensor, change: Tensor) -> Tensor:
    after = O.categorical_entropy((logits + change).log_softmax(-1))
    return after - O.categorical_entropy(logits.log_softmax(-1))


def _median(predicted: Tensor, measured: Tensor) -> float:
    return torch.median((predicted / measured - 1).abs()).item()


def judge(f: Figures) -> Judgement:
    near = max(f[f"{form}: error of the predicted change, step 0.001"].value for form in ("natural", "plain"))
    far = f["natural: error of the predicted change, step 1"].value
    wrong = f["natural law for a plain step of 0.001 (control)"].value
    shared = f["plain law for a step on weights that 50 actions share (control)"].value
    if near > 0.05:
        return "refuted", f"even for a small step the prediction is off by {number(near)}"
    if max(far, wrong, shared) < 0.05:
        return "holds", "at every step size, also for shared weights"
    return "holds when", (
        f"the step is small and each state has its own logits: error {number(near)} at step 0.001, "
        f"{number(far)} at 1. On shared weights it is off by {number(shared)}, and the natural law misses a "
        f"plain step by {number(wrong)}"
    )


CLAIM = Claim(
    id="entropy-covariance",
    subject="entropy",
    statement="A policy gradient step changes entropy by -η·Cov(log π, π·A); a natural one by -η·Cov(log π, "
    "A).",
    source=f"{ENTROPY_MECHANISM}, theorems 1 and 2; {ENTROPY_ESSAY.at('section 2.2')}; "
    f"{READING_NOTES.at('The Entropy Mechanism')}",
    experiment="entropy before and after one exact step in 100 random worlds of 50 actions; median relative "
    "error",
    control="the wrong one of the two laws; logits that are linear in 8 shared weights",
    measure=measure,
    judge=judge,
    real_runs=RealRuns(
        "entropy.md#what-a-run-tells-you",
        "agree",
        "with shared weights and Adam the predicted sign is mostly right and the predicted size is not",
    ),
)

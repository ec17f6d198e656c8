"""Importance ratios per token."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import ROUNDING, Claim, Figure, Figures, Judgement, number
from klent.claims.sources import REFERENCE_MODEL, TRPO
from klent.claims.worlds.sequences import MASK, TOKENS, probability, table, token_logp
from klent.claims.worlds.simplex import random_logits, relative_error


def measure() -> dict[str, Figure]:
    figures = {}
    for distance in (0.1, 0.2, 0.4, 1.6):
        figures[f"error of ratios per token at distance {distance:g}"] = Figure(_error(distance, whole=False))
    figures["error of the ratio of whole sequences at distance 1.6 (control)"] = Figure(
        _error(1.6, whole=True)
    )
    return figures


def _error(distance: float, *, whole: bool) -> float:
    """Relative error of the mean gradient of expected reward, with tokens from an older policy."""
    policy, step = table(0), table(1)
    old = policy + distance * step / step.norm()
    reward = random_logits(3, len(TOKENS))
    advantage = (reward - (probability(policy) * reward).sum()).unsqueeze(1).expand(TOKENS.shape)
    logits = policy.detach().requires_grad_()
    logp, logp_old = token_logp(logits), token_logp(old)
    if whole:
        advantage = advantage * (logp - logp_old).detach().sum(1, keepdim=True).exp()
        loss = O.reinforce(logp, advantage, MASK).loss
    else:
        loss = O.cispo(logp, logp_old, advantage, MASK, ratio_max=float("inf")).loss
    estimate = _gradient((probability(old) * loss.sum(1)).sum(), logits)
    logits = policy.detach().requires_grad_()
    true = _gradient(-(token_logp(logits).sum(1).exp() * reward).sum(), logits)
    return relative_error(estimate, true)


def _gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def judge(f: Figures) -> Judgement:
    near, twice = (f[f"error of ratios per token at distance {d:g}"].value for d in (0.1, 0.2))
    far = f["error of ratios per token at distance 1.6"].value
    whole = f["error of the ratio of whole sequences at distance 1.6 (control)"].value
    if far < 0.01:
        return "holds", "the missing ratio of states makes no difference"
    if near > 0.2 or whole > ROUNDING:
        return "refuted", f"the error is {number(near)} even close by"
    return "holds when", (
        f"the older policy is near: the error is {number(near)} at distance 0.1 and {number(twice / near)} "
        f"times as large at twice the distance, but {number(far)} at 1.6, where the ratio of whole sequences "
        "is exact"
    )


CLAIM = Claim(
    id="token-ratio",
    subject="kl",
    statement="Off-policy, the ratio of the states' probabilities can be dropped and each token weighted by "
    "its own ratio π/π_old.",
    source=f"{REFERENCE_MODEL.at('section 7, equations 53 and 54')}; {TRPO}, section 2",
    experiment="exact mean gradient of the expected reward over 27 sequences, with tokens from a policy at "
    "a given distance (in logits)",
    control="one ratio for the whole sequence",
    measure=measure,
    judge=judge,
)

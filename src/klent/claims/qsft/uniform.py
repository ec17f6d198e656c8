"""Q-SFT's loss without a dummy action."""

import torch
from torch import Tensor

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import Q_SFT
from klent.claims.worlds.simplex import mean_gradient, random_logits

_SIZES = (4, 32, 256, 2048)


def measure() -> dict[str, Figure]:
    figures, residual = {}, 0.0
    for size in _SIZES:
        behaviour = random_logits(0, size, scale=2.0).softmax(-1)
        weight = random_logits(1, size).sigmoid()
        p = fixed_point(behaviour, weight)
        residual = max(residual, _slope(p, behaviour, weight))
        figures[f"largest |p - w·πᵦ|, {size} actions"] = Figure((p - weight * behaviour).abs().max().item())
        figures[f"largest |p/πᵦ - w|, {size} actions"] = Figure((p / behaviour - weight).abs().max().item())
    figures["|mean gradient| at these fixed points, largest"] = Figure(residual)
    figures["largest |p/πᵦ - w| with the dummy action, 2048 actions (control)"] = Figure(_dummy_error())
    return figures


def fixed_point(behaviour: Tensor, weight: Tensor) -> Tensor:
    """w·πᵦ, plus a share of 1/(K - 1) of the 1 - w of every other action."""
    spread = behaviour * (1 - weight)
    return weight * behaviour + (spread.sum() - spread) / (len(behaviour) - 1)


def _slope(p: Tensor, behaviour: Tensor, weight: Tensor) -> float:
    size = len(p)
    mask = torch.ones(size, 1, dtype=torch.bool)

    def loss(logp: Tensor) -> Tensor:
        mean = logp.mean().expand(size, 1)
        return O.uniform_cross_entropy(logp, mean, weight.unsqueeze(1), mask, actions=size).loss

    return float(mean_gradient(loss, p.log(), behaviour).norm())


def _dummy_error() -> float:
    """The gradient that the form with a dummy action has at w·πᵦ, in units of p/πᵦ."""
    size = _SIZES[-1]
    behaviour = random_logits(0, size, scale=2.0).softmax(-1)
    weight = random_logits(1, size).sigmoid()
    p = torch.cat([weight * behaviour, (behaviour * (1 - weight)).sum().unsqueeze(0)])
    logits = p.log().requires_grad_()
    logp = logits.log_softmax(-1)
    mask = torch.ones(size, 1, dtype=torch.bool)
    dummy = logp[-1].expand(size, 1)
    loss = O.weighted_cross_entropy(logp[:-1].unsqueeze(1), dummy, weight.unsqueeze(1), mask).loss
    (slope,) = torch.autograd.grad((behaviour * loss.squeeze(1)).sum(), logits)  # at logits z: p - p*
    return (slope[:-1] / behaviour).abs().max().item()


def judge(f: Figures) -> Judgement:
    small, large = (f[f"largest |p/πᵦ - w|, {size} actions"].value for size in (_SIZES[0], _SIZES[-1]))
    error = f["largest |p - w·πᵦ|, 2048 actions"].value
    if f["|mean gradient| at these fixed points, largest"].value > 1e-9:
        return "refuted", "the gradient of the loss is not 0 at the derived fixed point"
    if large < min(small, 0.1):
        return "holds", f"the value p/πᵦ is within {number(large)} with 2048 actions"
    return "refuted", (
        f"with 2048 actions p is within {number(error)}, but the value p/πᵦ, which the Bellman target uses, "
        f"is off by up to {number(large)} (values are at most 1), more than the {number(small)} with 4 "
        "actions: rare actions look excellent. The form with a dummy action has no such error"
    )


CLAIM = Claim(
    id="qsft-uniform",
    subject="qsft",
    statement="The loss used in practice, which spreads 1 - w evenly over the other tokens instead of a "
    "dummy action, also gives p ≈ w·π_β, so that p/π_β is the value.",
    source=f"{Q_SFT}, equation 3 and the Bellman target",
    experiment="fixed point in closed form, checked by the gradient of the loss there, for 4 to 2048 actions",
    control="the form with a dummy action",
    measure=measure,
    judge=judge,
)

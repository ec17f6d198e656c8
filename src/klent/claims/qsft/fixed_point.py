"""Q-SFT's fixed point."""

import torch

from klent import objectives as O
from klent.claims.claim import Claim, Figure, Figures, Judgement, number
from klent.claims.sources import Q_SFT, WEIGHTED_CROSS_ENTROPY
from klent.claims.worlds.minimise import minimise
from klent.claims.worlds.simplex import random_logits

_ACTIONS = 6


def measure() -> dict[str, Figure]:
    behaviour = random_logits(0, _ACTIONS).softmax(-1)
    weight = random_logits(1, _ACTIONS).sigmoid()
    mask = torch.ones(_ACTIONS, 1, dtype=torch.bool)
    with_dummy = torch.zeros(_ACTIONS + 1, dtype=torch.float64, requires_grad=True)
    plain = torch.zeros(_ACTIONS, dtype=torch.float64, requires_grad=True)

    def dummy_loss() -> torch.Tensor:
        logp = with_dummy.log_softmax(-1)
        dummy = logp[-1].expand(_ACTIONS, 1)
        loss = O.weighted_cross_entropy(logp[:-1].unsqueeze(1), dummy, weight.unsqueeze(1), mask).loss
        return (behaviour * loss.squeeze(1)).sum()

    def plain_loss() -> torch.Tensor:
        loss = O.cross_entropy(plain.log_softmax(-1).unsqueeze(1), mask).loss.squeeze(1)
        return (weight * behaviour * loss).sum()

    minimise(dummy_loss, with_dummy)
    minimise(plain_loss, plain)
    p, q = with_dummy.detach().softmax(-1), plain.detach().softmax(-1)
    target = weight * behaviour
    return {
        "largest |p - w·πᵦ|": Figure((p[:-1] - target).abs().max().item()),
        "|p(dummy) - Σ πᵦ·(1 - w)|": Figure((p[-1] - (behaviour * (1 - weight)).sum()).abs().item()),
        "largest |p/πᵦ - w|": Figure((p[:-1] / behaviour - weight).abs().max().item()),
        "largest |p - w·πᵦ| without the dummy action (control)": Figure((q - target).abs().max().item()),
    }


def judge(f: Figures) -> Judgement:
    worst = max(figure.value for name, figure in f.items() if "control" not in name)
    control = f["largest |p - w·πᵦ| without the dummy action (control)"].value
    if worst > 1e-4:
        return "refuted", f"after training to convergence p is {number(worst)} from w·πᵦ"
    return "holds", (
        f"after training to convergence p is w·πᵦ, with an error of {number(worst)}, and the dummy holds the "
        f"rest; without the dummy, weights alone miss by {number(control)}, because the softmax normalises "
        "them away"
    )


CLAIM = Claim(
    id="qsft-fixed-point",
    subject="qsft",
    statement="Weighted cross-entropy with a dummy action has the solution p*(a|s) = w(s, a)·π_β(a|s), and "
    "the dummy takes the rest of the mass.",
    source=f"{Q_SFT}, equation 2; {WEIGHTED_CROSS_ENTROPY}",
    experiment="the exact mean loss over 6 actions, trained to convergence",
    control="cross-entropy with the same weights and no dummy action",
    measure=measure,
    judge=judge,
)
